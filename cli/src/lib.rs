//! The command line of oxmesh, and the pods that its demo, `oxmesh run` and the system's tests
//! are made of.

pub mod apps;
pub mod commands;
pub mod pod;
