//! `oxmesh`: see [`oxmesh::commands`].
fn main() {}
