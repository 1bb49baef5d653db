// Package hold bounds, in bytes, what a process holds because somebody else says so: what can be found out again goes when room is
// needed ([Cache]), what somebody relies on is refused when there is none ([Budget]). Both are fair: no tenant can push out, or keep
// out, what is another's.
package hold

// Share is how much of something one caller may have, lest nobody else is served. Anonymous callers, "", cannot be told apart: theirs
// is all.
func Share(most int, caller string) int {
	if caller == "" {
		return most
	}
	return (most + 1) / 2
}
