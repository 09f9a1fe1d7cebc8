"""Protobuf messages of the gRPC services: their .proto files, what protoc makes of them, and the classes."""
