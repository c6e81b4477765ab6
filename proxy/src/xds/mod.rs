//! The only place that knows protobuf: from xDS resources to our own configuration types.
//!
//! Every resource is walked against one table ([`support`]) before anything of it is used, so that nothing asked for is
//! silently ignored; then it is decoded and converted ([`convert`]).

pub mod convert;
pub mod json;
