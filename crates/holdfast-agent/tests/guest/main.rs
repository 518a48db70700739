//! The agent as its host and a guest's programs see it: real processes, sockets and terminals, in a
//! directory of their own.

mod exec;
mod held;
mod rig;
mod services;
mod terminals;
mod tools;
