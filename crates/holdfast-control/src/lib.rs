//! Reconciler, executor, health ladder, leases and placement, over the Store and Driver traits.
