//! Fuzz targets. `cargo test` runs each for a bounded number of random inputs and all of its corpus; with a fuzzer:
//! `cargo bolero test -p oxmesh-fuzz <target>`.

mod detect;
mod path;
mod xds;
