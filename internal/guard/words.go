package guard

import "bytes"

// Some numbers and keys look like any other: they count where what stands before them, or the member they stand in, says
// what they are.

// contextSize is how far before a value a word may stand.
const contextSize = 40

// calledAny reports whether one of words stands shortly before i in text, or in the name of the member that text is of.
func calledAny(text []byte, i int, name []byte, words ...string) bool {
	var buf [160]byte
	if anyWord(split(buf[:0], name), words) {
		return true
	}
	return anyWord(split(buf[:0], text[max(0, i-contextSize):i]), words)
}

// named is calledAny for the name alone.
func named(name []byte, words ...string) bool {
	var buf [160]byte
	return anyWord(split(buf[:0], name), words)
}

func anyWord(in []byte, words []string) bool {
	for _, w := range words {
		for from := 0; ; {
			at := bytes.Index(in[from:], []byte(w))
			if at < 0 {
				break
			}
			at += from
			if in[at-1] == ' ' && in[at+len(w)] == ' ' {
				return true
			}
			from = at + 1
		}
	}
	return false
}

// split appends the words of text in lower case with one blank before and after each: "aws_secretKey" is " aws secret key ".
func split(dst, text []byte) []byte {
	if len(text) > 3*contextSize {
		text = text[len(text)-3*contextSize:]
	}
	dst = append(dst, ' ')
	for i, c := range text {
		if !isAlnum(c) {
			if dst[len(dst)-1] != ' ' {
				dst = append(dst, ' ')
			}
			continue
		}
		upper := 'A' <= c && c <= 'Z'
		if upper && i > 0 {
			before := text[i-1]
			lowerBefore := 'a' <= before && before <= 'z' || isDigit(before)
			lowerAfter := i+1 < len(text) && 'a' <= text[i+1] && text[i+1] <= 'z'
			if lowerBefore || isLetter(before) && lowerAfter {
				dst = append(dst, ' ')
			}
		}
		if upper {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	if dst[len(dst)-1] != ' ' {
		dst = append(dst, ' ')
	}
	return dst
}
