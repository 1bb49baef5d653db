package guard

import "bytes"

// phone finds a telephone number: international (E.164 with +, or with 00 and separators), of the North American plan
// (area and exchange as it assigns them, with separators), national with a trunk 0 in groups, and any run of 7 to 15 digits
// that is all of a member called a phone number. The run of digits at i is the first, or the one after a parenthesis.
func phone(text []byte, i int, name []byte) (from, to int) {
	end := endOfDigits(text, i)
	if i > 0 && text[i-1] == '+' {
		return international(text, i-1, i, 8)
	}
	if to = northAmerican(text, i, end); to > 0 {
		if i > 0 && text[i-1] == '(' && text[end] == ')' {
			return i - 1, to
		}
		return i, to
	}
	if !freeBefore(text, i) {
		return 0, 0
	}
	if text[i] == '0' && i+2 < len(text) {
		if text[i+1] == '0' && text[i+2] != '0' && isDigit(text[i+2]) {
			if from, to = international(text, i, i+2, 8); to > 0 && to > end { // alone it is any number that begins so
				return from, to
			}
		} else if to = trunk(text, i, end); to > 0 {
			return i, to
		}
	}
	if i <= 1 && isPhoneAlone(text) && named(name, "phone", "telephone", "tel", "mobile", "cell", "cellphone", "fax", "msisdn", "whatsapp", "phonenumber", "mobilenumber") {
		return 0, len(text)
	}
	return 0, 0
}

// isPhoneAlone: digits and what people put between them, nothing else.
func isPhoneAlone(text []byte) bool {
	digits := 0
	for _, c := range text {
		switch {
		case isDigit(c):
			digits++
		case bytes.IndexByte([]byte(" -./()+"), c) < 0:
			return false
		}
	}
	return digits >= 7 && digits <= 15
}

// international reads country code and number from i on; from is where what marks it begins.
func international(text []byte, start, i, least int) (from, to int) {
	if start > 0 && (isAlnum(text[start-1]) || text[start-1] == '_' || text[start-1] == '+') || text[i] == '0' {
		return 0, 0
	}
	digits := 0
	for at := i; at < len(text); {
		if c := text[at]; isDigit(c) {
			digits++
			at++
			to = at
			continue
		}
		next := at + 1 // one separator, or a blank and a parenthesis
		if next < len(text) && (text[next] == '(' || text[next] == ')' || text[next] == ' ') && text[next] != text[at] {
			next++
		}
		if bytes.IndexByte([]byte(" -.()/"), text[at]) < 0 || next >= len(text) || !isDigit(text[next]) {
			break
		}
		if digits >= 15 || digits >= least && text[at] == ' ' && !plausibleGroup(text, next, digits) {
			break
		}
		at = next
	}
	if digits < least || digits > 15 || !freeAfter(text, to) {
		return 0, 0
	}
	return start, to
}

// plausibleGroup: what follows a whole number after a blank belongs to it if it is a short group.
func plausibleGroup(text []byte, i, digits int) bool {
	n := endOfDigits(text, i) - i
	return n >= 2 && n <= 4 && digits+n <= 13
}

// northAmerican reads (NXX) NXX-XXXX, NXX-NXX-XXXX and such, with or without a leading 1; 0: it is none.
func northAmerican(text []byte, i, end int) int {
	if end-i == 1 && text[i] == '1' && end+1 < len(text) && freeBefore(text, i) && bytes.IndexByte([]byte(" -."), text[end]) >= 0 {
		next := end + 1
		if text[next] == '(' {
			next++
		}
		return northAmericanFrom(text, next, true)
	}
	return northAmericanFrom(text, i, false)
}

func northAmericanFrom(text []byte, i int, prefixed bool) int {
	if !assigned(text, i) || endOfDigits(text, i) != i+3 || i+3 >= len(text) {
		return 0
	}
	at := i + 3
	sep := text[at]
	switch {
	case i > 0 && text[i-1] == '(' && sep == ')':
		if i > 1 && isAlnum(text[i-2]) {
			return 0
		}
		if at++; at < len(text) && (text[at] == ' ' || text[at] == '-') {
			at++
		}
		sep = 0
	case bytes.IndexByte([]byte(" -."), sep) >= 0:
		if !prefixed && !freeBefore(text, i) {
			return 0
		}
		at++
	default:
		return 0
	}
	if !assigned(text, at) || endOfDigits(text, at) != at+3 || at+3 >= len(text) {
		return 0
	}
	at += 3
	if c := text[at]; sep == 0 && bytes.IndexByte([]byte(" -."), c) < 0 || sep != 0 && c != sep {
		return 0
	}
	at++
	to := endOfDigits(text, at)
	if to-at != 4 || !freeAfter(text, to) || to+1 < len(text) && text[to] == sep && sep != 0 && isDigit(text[to+1]) {
		return 0
	}
	return to
}

// assigned reports whether an area code or exchange of the North American plan stands at i: NXX, and not N11.
func assigned(text []byte, i int) bool {
	return i+3 <= len(text) && '2' <= text[i] && text[i] <= '9' && isDigit(text[i+1]) && isDigit(text[i+2]) &&
		!(text[i+1] == '1' && text[i+2] == '1')
}

// trunk reads a national number with a trunk prefix: 030 123456, 0171/1234567, 020 7946 0958, 01 23 45 67 89.
func trunk(text []byte, i, end int) int {
	if n := end - i; n < 2 || n > 5 || text[i+1] == '0' {
		return 0
	}
	first := end - i
	groups, n, sep := grouped(text, i, 12, " -/.")
	if n < 2 || sep == '/' && first < 3 {
		return 0
	}
	digits := 0
	for k, g := range groups[:n] {
		size := g.to - g.from
		digits += size
		if size < 2 || sep == '.' && (size != 2 || n != 5) || sep == '-' && first == 2 && k > 0 && size == 2 && n < 5 { // dates
			return 0
		}
	}
	to := groups[n-1].to
	if digits < 9 || digits > 12 || !freeAfter(text, to) || to+1 < len(text) && isDigit(text[to+1]) && text[to] == sep {
		return 0
	}
	return to
}
