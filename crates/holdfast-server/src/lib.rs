//! HTTP API, gateway, dashboard assets and authentication.
