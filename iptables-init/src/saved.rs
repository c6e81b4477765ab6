//! Reads what `iptables-save` prints, and compares rules by meaning.
//!
//! The tools print a rule in another form than it was given (options in another order, implied
//! matches added, a range of all addresses dropped). [`Rule`] is the one form of both.

use std::collections::{BTreeMap, BTreeSet};

use crate::rules::CHAINS;

/// A rule's matches and target, independent of their order and spelling.
pub type Rule = BTreeSet<String>;

/// The `nat` table: its chains and their rules in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    chains: BTreeMap<String, Vec<(Rule, String)>>,
}

impl Table {
    /// Reads the `nat` table from the text of `iptables-save` or for `iptables-restore`. Other
    /// tables and comments are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut in_nat = false;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                in_nat = name == "nat";
            } else if !in_nat {
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_whitespace().next().unwrap_or(chain);
                table.chains.entry(name.to_owned()).or_default();
            } else if let Some(body) = line.strip_prefix("-A ") {
                let (chain, rest) = body.split_once(' ').unwrap_or((body, ""));
                let rules = table.chains.entry(chain.to_owned()).or_default();
                rules.push((canonical(rest), body.to_owned()));
            }
        }
        table
    }

    /// The rules of a chain in order; `None` when there is no such chain.
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<Vec<&Rule>> {
        let rules = self.chains.get(name)?;
        Some(rules.iter().map(|(rule, _)| rule).collect())
    }

    /// Rules that jump to one of our chains from a chain that isn't ours, as they were printed.
    #[must_use]
    pub fn jumps_to_ours(&self) -> Vec<String> {
        self.foreign_jumps().map(|(_, _, body)| body.clone()).collect()
    }

    /// Differences in all that is ours: our chains, and the jumps to them. Empty when equal.
    #[must_use]
    pub fn missing_from(&self, actual: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for chain in CHAINS {
            match (self.chain(chain), actual.chain(chain)) {
                (Some(wanted), Some(found)) if wanted == found => {}
                (_, None) => differences.push(format!("chain {chain} is missing")),
                (wanted, Some(found)) => differences.push(format!(
                    "chain {chain} holds {} rules that are not the {} wanted",
                    found.len(),
                    wanted.map_or(0, |rules| rules.len())
                )),
            }
        }
        let jumps = |table: &Self| -> Vec<(String, Rule)> {
            table.foreign_jumps().map(|(chain, rule, _)| (chain.clone(), rule.clone())).collect()
        };
        let (mut wanted, mut found) = (jumps(self), jumps(actual));
        wanted.sort();
        found.sort();
        if wanted != found {
            differences.push(format!("jumps to our chains are {found:?}, not {wanted:?}"));
        }
        differences
    }

    fn foreign_jumps(&self) -> impl Iterator<Item = (&String, &Rule, &String)> {
        self.chains
            .iter()
            .filter(|(chain, _)| !CHAINS.contains(&chain.as_str()))
            .flat_map(|(chain, rules)| rules.iter().map(move |(rule, body)| (chain, rule, body)))
            .filter(|(_, rule, _)| CHAINS.iter().any(|ours| rule.contains(&format!("-j {ours}"))))
    }
}

/// Splits a rule into `[!] option value` parts in one spelling.
fn canonical(rule: &str) -> Rule {
    let mut parts = Rule::new();
    let mut negated = false;
    let mut words = rule.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let mut value = String::new();
        while let Some(next) = words.next_if(|next| !next.starts_with('-') && *next != "!") {
            value = if value.is_empty() { next.to_owned() } else { format!("{value} {next}") };
        }
        let everywhere = word == "-d" && matches!(value.as_str(), "0.0.0.0/0" | "::/0");
        // `-m tcp` is implied by `--dport`, `-m multiport` by `--dports`.
        if word != "-m" && word != "--match" && !everywhere {
            let not = if negated { "! " } else { "" };
            let option = if word == "--to-port" { "--to-ports" } else { word };
            parts.insert(format!("{not}{option} {value}"));
        }
        negated = false;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_equal_by_meaning_not_by_spelling() {
        let equal = [
            (
                "-o lo ! -d 127.0.0.1/32 -m owner --uid-owner 1500 -j X",
                "! -d 127.0.0.1/32 -o lo -m owner --uid-owner 1500 -j X",
            ),
            ("-p tcp --dport 80 -j RETURN", "-p tcp -m tcp --dport 80 -j RETURN"),
            ("-d ::/0 -j X", "-j X"),
            ("-p tcp -j REDIRECT --to-port 1", "-p tcp -j REDIRECT --to-ports 1"),
        ];
        for (left, right) in equal {
            assert_eq!(canonical(left), canonical(right));
        }
        let different = [
            ("-m owner --uid-owner 1500 -j X", "-m owner ! --uid-owner 1500 -j X"),
            ("-p tcp --dport 80 -j X", "-p tcp --dport 81 -j X"),
            ("-d 10.0.0.0/8 -j X", "-j X"),
        ];
        for (left, right) in different {
            assert_ne!(canonical(left), canonical(right));
        }
    }

    #[test]
    fn reports_a_missing_chain_a_changed_rule_and_a_doubled_jump() {
        let whole = "*nat\n:OSM_PROXY_INBOUND - [0:0]\n:OSM_PROXY_IN_REDIRECT - [0:0]\n\
            :OSM_PROXY_OUTBOUND - [0:0]\n:OSM_PROXY_OUT_REDIRECT - [0:0]\n\
            -A PREROUTING -p tcp -j OSM_PROXY_INBOUND\n\
            -A OSM_PROXY_INBOUND -p tcp -j OSM_PROXY_IN_REDIRECT\nCOMMIT\n";
        let wanted = Table::parse(whole);
        assert_eq!(wanted.missing_from(&Table::parse(whole)), Vec::<String>::new());
        let jump = "-A PREROUTING -p tcp -j OSM_PROXY_INBOUND\n";
        let cases = [
            (whole.replace(":OSM_PROXY_OUTBOUND - [0:0]\n", ""), "OSM_PROXY_OUTBOUND is missing"),
            (whole.replace("-p tcp -j OSM_PROXY_IN_R", "-p udp -j OSM_PROXY_IN_R"), "chain OSM_PROXY_INBOUND"),
            (whole.replace(jump, ""), "jumps to our chains"),
            (whole.replace(jump, &jump.repeat(2)), "jumps to our chains"),
        ];
        for (text, part) in cases {
            let differences = wanted.missing_from(&Table::parse(&text)).join("; ");
            assert!(differences.contains(part), "`{part}` not in `{differences}`");
        }
    }
}
