// Package guard finds and masks text in JSON messages: what a [Filter] looks for, in the places of a message that a
// [Shape] names. It knows no policy and no proxy.
//
// A message goes in as bytes and comes out as the same bytes, as a copy in which only the string literals that held
// something are written anew, or not at all, with a [Finding]. Strings are looked at as they are when decoded, so that
// an escape hides nothing; numbers, names of members, their order and white space stay as they are. Nothing is copied
// where nothing is found.
//
// The names of members and numbers cannot be masked without changing what a message is. Where the shape says that they
// are the sender's own (a tool's arguments, structured content), a filter that rejects looks at them too.
//
// All compiled values are immutable and safe for use by many goroutines; a [Trail] belongs to one stream.
package guard
