//! HTTP connections: the server, and the policies that a request passes on its way upstream.

pub mod path;
