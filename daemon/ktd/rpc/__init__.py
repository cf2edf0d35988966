"""The gRPC API: services, errors, health and the conversion between protobuf and domain."""
