// Package systemtest holds tests of the whole: real processes, started as users start them, and real MCP servers and clients.
//
// The test binary is the sluice command itself when SLUICE_SYSTEMTEST is set, so that what runs is what was compiled with
// the race detector. The folders beside it hold suites that need more than Go: conformance/ and interop/.
package systemtest
