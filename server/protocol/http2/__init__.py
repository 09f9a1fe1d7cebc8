"""HTTP/2 (RFC 9113) as a server of gRPC needs it: bytes in, events and bytes out. No I/O, no clock but `now` as an argument."""
