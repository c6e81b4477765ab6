//! The command line of oxmesh, and the pods that its demo, `oxmesh run` and the system's tests
//! are made of.

pub mod apps;
pub mod check;
pub mod cluster;
pub mod commands;
pub mod demo;
pub mod mesh;
pub mod output;
pub mod pod;
pub mod run;
mod signals;
mod traffic;
