//! Sockets: listening, what a connection is, and the way of a connection to the end of its filter chain.

pub mod connection;
pub mod copy;
pub mod detect;
pub mod filter;
pub mod listen;
pub mod original_dst;
pub mod stream;
pub mod waiting;

#[cfg(test)]
mod tests;
