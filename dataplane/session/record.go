package session

import "encoding/binary"

// Records are fields in a fixed order: numbers as uvarints, strings with their length before them.

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// reader takes a record apart. All strings share the one that it was made of. After the first field that is not there,
// everything reads as zero and bad stays true.
type reader struct {
	rest string
	bad  bool
}

func (r *reader) number() uint64 {
	var v uint64
	for i := range min(len(r.rest), binary.MaxVarintLen64) {
		b := r.rest[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			r.rest = r.rest[i+1:]
			return v
		}
	}
	r.fail()
	return 0
}

func (r *reader) string() string { return r.bytes(r.number()) }

func (r *reader) bytes(n uint64) string {
	if n > uint64(len(r.rest)) {
		r.fail()
		return ""
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

// count reads how many items follow, each of at least size bytes.
func (r *reader) count(size int) int {
	n := r.number()
	if n > uint64(len(r.rest)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) fail() { r.rest, r.bad = "", true }

// done reports whether the whole record was read, and nothing is left over.
func (r *reader) done() bool { return !r.bad && r.rest == "" }
