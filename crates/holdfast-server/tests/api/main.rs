//! The HTTP API, on a server that listens, over the simulated driver.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on fails")]

mod broken_store;
mod creation;
mod document;
mod drain;
mod events;
mod gates;
mod hostile;
mod hostile_routes;
mod http;
mod ladder;
mod lifecycle;
mod metrics;
mod owners;
mod postgres;
mod restart;
mod server;
mod shares;
mod signin;
mod start;
mod streams;
mod webhooks;
