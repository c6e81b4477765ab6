//! The rules for each option against golden files, and against what OSM's own init made.
//! With `UPDATE_GOLDEN=1` in the environment the files are written anew.

use std::fs;
use std::path::PathBuf;

use clap::Parser as _;
use oxmesh_iptables_init::saved::{Rule, Table};
use oxmesh_iptables_init::{Family, Options, rules};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn options(args: &[&str]) -> Options {
    let options = Options::parse_from([&["init"], args].concat());
    options.validate().expect("valid options");
    options
}

#[test]
fn each_option_gives_the_rules_of_its_golden_file() {
    let many_ports: Vec<String> = (1..=40).map(|port| port.to_string()).collect();
    let many_ports = many_ports.join(",");
    let cases: &[(&str, &[&str])] = &[
        ("default", &[]),
        ("ports", &["--inbound-ports-exclude", "7070, 6060,6060", "--outbound-ports-exclude", "5432"]),
        ("many-ports", &["--inbound-ports-exclude", &many_ports, "--outbound-ports-exclude", &many_ports]),
        ("inbound-include", &["--inbound-ports-include", "80,443", "--inbound-ports-exclude", "443"]),
        ("cidrs-exclude", &["--outbound-cidrs-exclude", "10.0.0.0/8,fd00::/8,192.168.1.1"]),
        (
            "cidrs-include",
            &["--outbound-cidrs-include", "10.0.0.0/8,fd00::/8", "--outbound-cidrs-exclude", "10.1.0.0/16"],
        ),
        ("interfaces", &["--interfaces-exclude", "eth1,net+"]),
        ("pod-ip", &["--pod-ip", "10.0.0.5,fd00::5"]),
        ("mark", &["--proxy-mark", "1500"]),
        (
            "uid-and-listen-ports",
            &["--proxy-uid", "1337", "--inbound-port", "15006", "--outbound-port", "15002", "--sidecar-ports", "15020"],
        ),
    ];
    for (name, args) in cases {
        let options = options(args);
        let text = format!("{}{}", rules::render(&options, Family::V4), rules::render(&options, Family::V6));
        let path = data(&format!("{name}.rules"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).expect("golden file is writable");
        }
        let golden = fs::read_to_string(&path).expect("golden file exists");
        assert_eq!(text, golden, "{name}: {}", path.display());
    }
}

/// The rule that OSM appends behind a REDIRECT of all TCP, which nothing ever reaches.
const UNREACHABLE: &str = "-p tcp -m tcp --dport 15000 -j ACCEPT";

#[test]
fn means_the_same_as_the_rules_that_osm_made_for_a_pod_with_excluded_ports() {
    let saved = fs::read_to_string(data("osm-echo.save")).expect("golden file exists");
    assert!(saved.contains(UNREACHABLE));
    let reachable: String =
        saved.lines().filter(|line| !line.ends_with(UNREACHABLE)).map(|line| format!("{line}\n")).collect();
    let ours = options(&["--inbound-ports-exclude", "6060,7070", "--outbound-ports-exclude", "5432"]);
    let ours = Table::parse(&rules::render(&ours, Family::V4));
    assert_eq!(ours.missing_from(&Table::parse(&reachable)), Vec::<String>::new());
}

#[test]
fn a_chain_holds_more_than_fifteen_excluded_ports() {
    let ports: Vec<String> = (1..=40).map(|port| port.to_string()).collect();
    let table = Table::parse(&rules::render(&options(&["--inbound-ports-exclude", &ports.join(",")]), Family::V4));
    let chain = table.chain(rules::INBOUND).expect("the chain is rendered");
    let lists: Vec<usize> = chain.iter().filter_map(|rule| multiport_len(rule)).collect();
    assert_eq!(lists, [15, 15, 10]);
}

fn multiport_len(rule: &Rule) -> Option<usize> {
    let list = rule.iter().find_map(|part| part.strip_prefix("--dports "))?;
    Some(list.split(',').count())
}
