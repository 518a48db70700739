//! Builds the image of the guest and keeps the library of built images.
