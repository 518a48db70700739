//! Test harness: temporary stores, simulated driver with faults, leak census.
