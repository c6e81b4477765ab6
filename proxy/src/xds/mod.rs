//! The only place that knows protobuf: from xDS resources to our own configuration types, and from those to snapshots.
//!
//! Every resource is walked against one table (`support.txt`) before anything of it is used, so that nothing asked for is
//! silently ignored; then it is decoded and converted ([`convert`]). [`state`] decides what is asked of the control
//! plane, acknowledged and refused.

pub mod assemble;
pub mod control;
pub mod convert;
pub mod json;
pub mod kind;
mod path;
mod pgv;
pub mod resource;
mod schema;
pub mod sds_file;
pub mod secrets;
pub mod state;
pub mod stream;
pub mod subscription;
mod support;
mod walk;
mod wire;
