package guard

import (
	"bytes"
	"slices"
	"unicode"
	"unicode/utf8"
)

// email finds an address of the form local@domain around the @ at i (RFC 5321, 6531: with letters beyond ASCII too). Quoted
// local parts and address literals are not looked for. Nothing before least belongs to it.
func email(text []byte, i, least int) (from, to int) {
	const maxLocal, maxDomain = 64, 255
	from = i
	if i == 0 || text[i-1] == '.' {
		return 0, 0
	}
	last, _ := utf8.DecodeLastRune(text[:i])
	for from > least && i-from < maxLocal {
		r, n := utf8.DecodeLastRune(text[least:from])
		if r < utf8.RuneSelf && !isAlnum(byte(r)) && bytes.IndexByte([]byte(".-_+%&'~#!$^"), byte(r)) < 0 {
			break
		}
		if r >= utf8.RuneSelf && (!isWordRune(r) || spaceless(r) && !spaceless(last)) {
			break
		}
		from -= n
	}
	for from < i && !isAlnum(text[from]) && text[from] < utf8.RuneSelf {
		from++ // a dot or dash before it is no part of it
	}
	if from == i {
		return 0, 0
	}
	to = domainEnd(text[:min(len(text), i+1+maxDomain)], i+1)
	if to == 0 {
		return 0, 0
	}
	return from, to
}

// domainEnd is the index past the domain name at i, 0 if there is none with a top level.
func domainEnd(text []byte, i int) int {
	labels, to := 0, 0
	for {
		end := labelEnd(text, i)
		if end == i || end-i > 63 || text[i] == '-' {
			break
		}
		for end > i && text[end-1] == '-' {
			end--
		}
		labels++
		if labels > 1 {
			if top := topLevelEnd(text, i, end); top > 0 {
				to = top
				if top < end {
					break
				}
			}
		}
		if end+1 >= len(text) || text[end] != '.' {
			break
		}
		i = end + 1
	}
	return to
}

func labelEnd(text []byte, i int) int {
	for i < len(text) {
		if c := text[i]; c < utf8.RuneSelf {
			if !isAlnum(c) && c != '-' {
				break
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if !isWordRune(r) {
			break
		}
		i += n
	}
	return i
}

func isWordRune(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r))
}

// spaceless reports whether r is of a script that is written without blanks: there text runs into an address, and is no part
// of it.
func spaceless(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar)
}

// notTopLevel end the names of files, as in icon@2x.png.
var notTopLevel = []string{"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html"}

// topLevelEnd is where the label from i to end stops to be a top-level domain, 0 if it is none: letters, or an IDN.
func topLevelEnd(text []byte, i, end int) int {
	label := text[i:end]
	if bytes.HasPrefix(bytes.ToLower(label), []byte("xn--")) && len(label) > 4 {
		return end
	}
	if label[0] >= utf8.RuneSelf {
		return end
	}
	n := 0
	for n < len(label) && isLetter(label[n]) {
		n++
	}
	if n < 2 || n < len(label) && label[n] < utf8.RuneSelf || slices.Contains(notTopLevel, string(bytes.ToLower(label[:n]))) {
		return 0
	}
	return i + n
}
