//! Test harness: temporary stores, simulated driver with faults, leak census.

pub mod postgres;

pub use postgres::TempPostgres;
