//! plan(desired, observed): the next step of a session.
