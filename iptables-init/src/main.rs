//! `oxmesh-iptables-init`: reads the options, programs the rules, says what it did.
//! Exit status: 0 in force, 1 a family could not be programmed, 64 wrong usage.

use std::process::ExitCode;

use clap::Parser as _;
use oxmesh_iptables_init::apply::{Outcome, apply};
use oxmesh_iptables_init::options::Ipv6Mode;
use oxmesh_iptables_init::{Family, Options, rules};

const USAGE: u8 = 64;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let status = if error.use_stderr() { USAGE } else { 0 };
            // Nobody is left to tell when standard error is closed.
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    if let Err(error) = options.validate() {
        eprintln!("error: {error}");
        return ExitCode::from(USAGE);
    }
    for warning in options.warnings() {
        eprintln!("warning: {warning}");
    }
    if options.dry_run {
        print_rules(&options);
        return ExitCode::SUCCESS;
    }
    match apply(&options) {
        Ok(outcomes) => {
            outcomes.iter().for_each(report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: traffic is not redirected, the pod must not start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_rules(options: &Options) {
    print!("# IPv4, for iptables-restore --noflush\n{}", rules::render(options, Family::V4));
    if options.ipv6 == Ipv6Mode::Off {
        println!("# IPv6 is turned off by --ipv6 off: no rules");
    } else {
        print!("# IPv6, for ip6tables-restore --noflush\n{}", rules::render(options, Family::V6));
    }
}

fn report((family, outcome): &(Family, Outcome)) {
    match outcome {
        Outcome::InForce(count) => println!("{family}: {count} rules in force"),
        Outcome::Absent(why) => eprintln!("{family}: skipped, nothing to redirect: {why}"),
        Outcome::LeftOpen => eprintln!(
            "warning: {family} is on in this network namespace, and with --ipv6 off its traffic passes the sidecar by, in and out (leave --ipv6 at auto, or turn IPv6 off for the pod)"
        ),
    }
}
