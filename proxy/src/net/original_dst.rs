//! Where a redirected connection was sent to (`SO_ORIGINAL_DST`, set by netfilter's REDIRECT).

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination of a connection whose own address is `local`; none when it was not redirected.
///
/// A connection made straight to our listener may report the listener itself (where connection tracking is on). That is
/// no destination to forward to: it would come back for ever.
#[must_use]
pub fn original_destination(tcp: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(tcp);
    // An IPv4 connection on a dual-stack socket has an IPv4 answer.
    let found = if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    other_than(found.ok()?.as_socket()?, local)
}

fn other_than(found: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
    let (found, local) = (canonical(found), canonical(local));
    ((found.ip(), found.port()) != (local.ip(), local.port())).then_some(found)
}

/// IPv4 addresses in IPv6 clothes become IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listener_is_no_original_destination() {
        let at = |s: &str| s.parse::<SocketAddr>().unwrap();
        assert_eq!(other_than(at("10.0.0.1:15003"), at("10.0.0.1:15003")), None);
        assert_eq!(other_than(at("10.0.0.1:15003"), at("[::ffff:10.0.0.1]:15003")), None);
        assert_eq!(other_than(at("10.0.0.1:80"), at("10.0.0.1:15003")), Some(at("10.0.0.1:80")));
        assert_eq!(other_than(at("[::ffff:10.0.0.1]:80"), at("10.0.0.1:15003")), Some(at("10.0.0.1:80")));
    }

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_has_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let tcp = listener.accept().await.unwrap().0;
            assert_eq!(original_destination(&tcp, tcp.local_addr().unwrap()), None);
        }
    }
}
