// Package mtls gives both planes their identities: a certificate authority, SPIFFE IDs, join tokens
// whose first dial is pinned, and TLS configurations that follow renewal.
//
// The control plane opens a [CA] and keeps an [Identity] that it signs for itself. A proxy parses a
// [JoinToken], dials with [JoinToken.ClientConfig], has its first certificate signed, and keeps its
// Identity on disk from then on. Names on certificates are SPIFFE IDs (https://spiffe.io, X.509-SVID);
// host names are on the control plane's alone, for clients that are not ours.
package mtls
