//! The system's scenarios, each named after what it shows.
fn main() {}
