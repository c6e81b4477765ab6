//! How the bytes on a port are understood: by `appProtocol`, else by the port's name, else as HTTP.

/// How the bytes on a port are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1 and HTTP/2, told apart by the bytes.
    Http,
    /// As [`Protocol::Http`], named apart for people.
    Grpc,
    /// Opaque bytes; the client speaks first, or the proxy waits a little for it.
    Tcp,
    /// Opaque bytes; the server speaks first, so nothing is waited for.
    TcpServerFirst,
}

impl Protocol {
    /// The name in resources and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::TcpServerFirst => "tcp-server-first",
        }
    }

    /// Whether requests are seen, not only bytes.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

/// The protocol of a port by `appProtocol`, else by the port name's first part, else HTTP; and a word if it is not known.
pub(super) fn protocol(app_protocol: Option<&str>, port_name: &str) -> (Protocol, Option<String>) {
    if let Some(text) = app_protocol.filter(|p| !p.is_empty()) {
        let lower = text.to_ascii_lowercase();
        return match lower.as_str() {
            "http" | "http2" | "h2c" | "kubernetes.io/h2c" | "kubernetes.io/ws" => (Protocol::Http, None),
            "grpc" => (Protocol::Grpc, None),
            "tcp" => (Protocol::Tcp, None),
            "tcp-server-first" => (Protocol::TcpServerFirst, None),
            other if SERVER_SPEAKS_FIRST.contains(&other) => {
                (Protocol::TcpServerFirst, Some(format!("{text:?} is carried as tcp-server-first")))
            }
            _ => (Protocol::Tcp, Some(format!("{text:?} is carried as opaque tcp"))),
        };
    }
    let name = port_name.to_ascii_lowercase();
    let starts = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    let by_name = if starts("tcp-server-first") {
        Protocol::TcpServerFirst
    } else if starts("tcp") {
        Protocol::Tcp
    } else if starts("grpc") {
        Protocol::Grpc
    } else {
        Protocol::Http
    };
    (by_name, None)
}

/// Protocols in which the server greets first; waiting for the client's first byte would wait for ever.
const SERVER_SPEAKS_FIRST: [&str; 10] =
    ["mysql", "mariadb", "smtp", "ftp", "ssh", "imap", "pop3", "nats", "nntp", "telnet"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_comes_from_app_protocol_then_from_the_ports_name_then_is_http() {
        let table = [
            (Some("grpc"), "http-a", Protocol::Grpc),
            (Some("TCP"), "", Protocol::Tcp),
            (Some("tcp-server-first"), "", Protocol::TcpServerFirst),
            (Some("redis"), "http-a", Protocol::Tcp),
            (Some("https"), "", Protocol::Tcp),
            (Some("mysql"), "", Protocol::TcpServerFirst),
            (Some("kubernetes.io/h2c"), "", Protocol::Http),
            (None, "tcp-raw", Protocol::Tcp),
            (None, "tcp", Protocol::Tcp),
            (None, "tcp-server-first-db", Protocol::TcpServerFirst),
            (None, "grpc-api", Protocol::Grpc),
            (None, "tcpdump", Protocol::Http),
            (None, "", Protocol::Http),
        ];
        for (app, name, expected) in table {
            assert_eq!(protocol(app, name).0, expected, "{app:?} {name:?}");
        }
    }

    #[test]
    fn an_unknown_app_protocol_is_said_aloud() {
        assert_eq!(protocol(Some("redis"), "").1.as_deref(), Some("\"redis\" is carried as opaque tcp"));
    }
}
