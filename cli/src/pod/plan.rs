//! Which address each pod has. Pure.
//!
//! IPv4 10.244.0.0/16 and IPv6 fd00:244::/64; number 1 is the node, pods follow. The network
//! exists in our own namespaces alone, so it can't collide with one of the machine's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Number of the node, which is every pod's gateway and where the controller listens.
pub(crate) const NODE: u16 = 1;
/// Highest number of a pod: 10.244.15.255. A bridge holds no more ports than 1023.
pub(crate) const LAST: u16 = 1000;

/// The addresses of the node or a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    number: u16,
    dual: bool,
}

impl Addresses {
    pub(crate) fn new(number: u16, dual: bool) -> Self {
        Self { number, dual }
    }

    /// The number that all else follows from, 1 for the node.
    #[must_use]
    pub fn number(self) -> u16 {
        self.number
    }

    /// The IPv4 address.
    #[must_use]
    pub fn v4(self) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10, 244, high, low)
    }

    /// The IPv6 address, where the kernel has IPv6.
    #[must_use]
    pub fn v6(self) -> Option<Ipv6Addr> {
        self.dual.then(|| Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, self.number))
    }

    /// All addresses, IPv4 first.
    #[must_use]
    pub fn all(self) -> Vec<IpAddr> {
        let v6 = self.v6().map(IpAddr::V6);
        [Some(IpAddr::V4(self.v4())), v6].into_iter().flatten().collect()
    }

    /// The hardware address that goes with it. A bridge without one of its own takes another with
    /// each new port, and an address that is used again would be looked for where it was: either
    /// way neighbours send to nobody for seconds.
    fn mac(self) -> String {
        let [a, b, c, d] = self.v4().octets();
        format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// Commands for `ip -batch` that set the node's bridge up.
    pub(crate) fn node_links(self) -> String {
        let mut commands = format!(
            "link set lo up\n\
             link add br0 address {} type bridge mcast_snooping 0\n\
             addr add {}/16 dev br0\n\
             link set br0 up\n",
            self.mac(),
            self.v4()
        );
        if let Some(v6) = self.v6() {
            commands += &format!("addr add {v6}/64 dev br0 nodad\n");
        }
        commands
    }

    /// Commands, run in the node's namespace, that join the namespace of process `pid` by a pair
    /// of interfaces.
    pub(crate) fn join_links(self, pid: u32) -> String {
        let (number, mac) = (self.number, self.mac());
        format!(
            "link add v{number} type veth peer name eth0 address {mac} netns /proc/{pid}/ns/net\n\
             link set v{number} master br0 up\n"
        )
    }

    /// Commands, run in the pod's namespace, that set its addresses and routes. All that isn't
    /// a pod goes to the node, which answers at once that it knows no way.
    pub(crate) fn pod_links(self, node: Self) -> String {
        let mut commands = format!(
            "link set lo up\n\
             addr add {}/16 dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            self.v4(),
            node.v4()
        );
        if let (Some(v6), Some(gateway)) = (self.v6(), node.v6()) {
            commands += &format!("addr add {v6}/64 dev eth0 nodad\nroute add default via {gateway}\n");
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_addresses_of_both_families() {
        let pod = Addresses::new(258, true);
        assert_eq!(pod.v4().to_string(), "10.244.1.2");
        assert_eq!(pod.v6().map(|ip| ip.to_string()), Some("fd00:244::102".into()));
        assert_eq!(Addresses::new(2, false).all().len(), 1);
    }

    #[test]
    fn a_kernel_without_ipv6_gets_no_ipv6_commands() {
        let (node, pod) = (Addresses::new(NODE, false), Addresses::new(2, false));
        for commands in [node.node_links(), pod.pod_links(node)] {
            assert!(!commands.contains("fd00"), "{commands}");
        }
    }
}
