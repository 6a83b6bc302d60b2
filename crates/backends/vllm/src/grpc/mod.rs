//! A server by gRPC.
