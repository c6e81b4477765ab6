//! Fuzz targets. `cargo test` runs each for a bounded number of random inputs and all of its corpus; with a fuzzer:
//! `cargo bolero test -p oxmesh-fuzz <target>`.

mod apply;
mod detect;
mod edits;
mod log_line;
mod path;
mod rbac;
mod resources;
mod xds;
