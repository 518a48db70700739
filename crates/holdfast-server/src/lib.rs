//! HTTP API, gateway, dashboard assets and authentication, and the wiring of one server.
//!
//! Owns the edge: who may call, what a call means, and streams between a user's browser and a VM.
//! It must never decide what becomes of a session (control does), nor see a guest's address (the
//! host layer does). The server is disposable: it holds nothing that a crash may not lose.

mod access;
pub mod assets;
pub mod auth;
pub mod config;
mod convert;
mod drain;
mod drivers;
mod error;
mod extract;
mod gateway;
mod images;
mod metrics;
pub mod openapi;
mod problem;
mod rfb;
mod router;
mod routes;
mod serve;
mod state;
mod state_dir;
mod warm;
pub mod webhook;
mod wiring;

pub use config::{Config, DriverChoice};
pub use drivers::open_driver;
pub use error::ServerError;
pub use images::{ImageLibrary, SimulatedImages};
pub use serve::Server;
pub use state::AppState;
pub use state_dir::StateDir;
pub use warm::{WarmImages, bake_now};
pub use wiring::Replaced;
