//go:build race

package systemtest

// raceEnabled says that processes are slower than those of users.
const raceEnabled = true
