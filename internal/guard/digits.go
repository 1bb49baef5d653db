package guard

import "bytes"

// Numbers are found where a run of digits begins. from and to say where the whole of a number stands; to is 0 for none.

// digitsBefore and after: what a number may touch.
func freeBefore(text []byte, i int) bool {
	if i == 0 {
		return true
	}
	c := text[i-1]
	if isAlnum(c) || c == '_' {
		return false
	}
	return !((c == '-' || c == '.' || c == '+') && i > 1 && isDigit(text[i-2]))
}

func freeAfter(text []byte, i int) bool {
	return i >= len(text) || !isAlnum(text[i]) && text[i] != '_'
}

// endOfDigits is the index past the run of digits at i.
func endOfDigits(text []byte, i int) int {
	for i < len(text) && isDigit(text[i]) {
		i++
	}
	return i
}

// A group is a run of digits in a number.
type group struct{ from, to int }

// grouped reads runs of digits from i on that are divided by one separator each, the same one throughout, up to most
// digits. sep is 0 where there is but one run.
func grouped(text []byte, i, most int, separators string) (groups [12]group, n int, sep byte) {
	digits := 0
	for n < len(groups) {
		end := endOfDigits(text, i)
		if end == i {
			break
		}
		if digits += end - i; digits > most {
			break
		}
		groups[n] = group{i, end}
		n++
		if end+1 >= len(text) || !isDigit(text[end+1]) {
			break
		}
		c := text[end]
		if sep == 0 {
			if bytes.IndexByte([]byte(separators), c) < 0 {
				break
			}
			sep = c
		} else if c != sep {
			break
		}
		i = end + 1
	}
	return groups, n, sep
}

// creditCard finds a primary account number (ISO/IEC 7812): the ranges and lengths of the major brands, written in one
// run or in the groups that cards show, with a valid check digit.
func creditCard(text []byte, i int) (from, to int) {
	if !freeBefore(text, i) {
		return 0, 0
	}
	end := endOfDigits(text, i)
	if n := end - i; n >= 12 && n <= 19 {
		if freeAfter(text, end) && cardRange(text[i:end]) && luhn(text[i:end]) {
			return i, end
		}
		return 0, 0
	} else if n != 4 {
		return 0, 0
	}
	groups, n, _ := grouped(text, i, 19, " -")
	var buf [19]byte
	number := buf[:0]
	best := 0
	for k, g := range groups[:n] {
		number = append(number, text[g.from:g.to]...)
		if !freeAfter(text, g.to) || !cardGroups(groups[:k+1]) {
			continue
		}
		if cardRange(number) && luhn(number) {
			best = g.to
		}
	}
	if best == 0 {
		return 0, 0
	}
	return i, best
}

// cardGroups: 4-4-4-4 and on, 4-6-5 and 4-6-4.
func cardGroups(groups []group) bool {
	size := func(k int) int { return groups[k].to - groups[k].from }
	if len(groups) == 3 && size(1) == 6 {
		return size(2) == 5 || size(2) == 4
	}
	if len(groups) < 3 {
		return false
	}
	for k := range len(groups) - 1 {
		if size(k) != 4 {
			return false
		}
	}
	return size(len(groups)-1) <= 4
}

// cardRange reports whether a brand issues numbers that begin so and are so long.
func cardRange(number []byte) bool {
	n := len(number)
	p := 0
	for _, c := range number[:4] {
		p = p*10 + int(c-'0')
	}
	long := n >= 16 && n <= 19
	switch {
	case p/1000 == 4: // Visa
		return n == 13 || n == 16 || n == 19
	case p/100 >= 51 && p/100 <= 55, p >= 2221 && p <= 2720: // Mastercard
		return n == 16
	case p/100 == 34, p/100 == 37: // American Express
		return n == 15
	case p >= 3000 && p <= 3059, p == 3095, p/100 == 36, p/100 == 38, p/100 == 39: // Diners Club
		return n == 14 || long
	case p >= 3528 && p <= 3589: // JCB
		return long
	case p == 6011, p >= 6440 && p <= 6499, p/100 == 65: // Discover
		return long
	case p/100 == 62, p/100 == 81: // UnionPay
		return long
	case p >= 2200 && p <= 2204: // Mir
		return long
	case p == 5018, p == 5020, p == 5038, p == 5893, p == 6304, p == 6759, p >= 6761 && p <= 6763: // Maestro
		return n >= 12 && n <= 19
	case p/100 == 60, p/100 == 82, p/10 == 508: // RuPay
		return n == 16
	}
	return false
}

// luhn checks the last digit (ISO/IEC 7812-1, annex B).
func luhn(number []byte) bool {
	sum := 0
	for k := range number {
		d := int(number[len(number)-1-k] - '0')
		if k%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}

// ssn finds a Social Security number of the United States, AAA-GG-SSSS: without the areas 000, 666 and 9xx, group 00 and
// serial 0000, which the SSA never assigns, and without two numbers that it voided for having been printed in
// advertisements. A bare run of nine digits counts if it is called one.
func ssn(text []byte, i int, name []byte) (from, to int) {
	if !freeBefore(text, i) {
		return 0, 0
	}
	number, end := nineDigits(text, i, 3, 2, 4)
	if number == nil {
		return 0, 0
	}
	area, group, serial := string(number[:3]), string(number[3:5]), string(number[5:])
	if area == "000" || area == "666" || area[0] == '9' || group == "00" || serial == "0000" {
		return 0, 0
	}
	switch string(number) {
	case "078051120", "219099999":
		return 0, 0
	}
	if end-i == 9 && !calledAny(text, i, name, "ssn", "social security") {
		return 0, 0
	}
	return i, end
}

// caSIN finds a Social Insurance Number of Canada, 3-3-3 with a valid check digit. 8 begins business numbers. A bare run
// of nine digits counts if it is called one.
func caSIN(text []byte, i int, name []byte) (from, to int) {
	if !freeBefore(text, i) {
		return 0, 0
	}
	number, end := nineDigits(text, i, 3, 3, 3)
	if number == nil || number[0] == '8' || string(number) == "000000000" || !luhn(number) {
		return 0, 0
	}
	if end-i == 9 && !calledAny(text, i, name, "sin", "social insurance", "nas", "assurance sociale") {
		return 0, 0
	}
	return i, end
}

// nineDigits reads three groups of the given sizes with one separator, or one run.
func nineDigits(text []byte, i, a, b, c int) (number []byte, end int) {
	groups, n, sep := grouped(text, i, 9, " -")
	switch {
	case n == 1 && sep == 0 && groups[0].to-i == 9:
		end = groups[0].to
		number = text[i:end]
	case n == 3 && groups[0].to-groups[0].from == a && groups[1].to-groups[1].from == b && groups[2].to-groups[2].from == c:
		end = groups[2].to
		number = make([]byte, 0, 9)
		for _, g := range groups[:3] {
			number = append(number, text[g.from:g.to]...)
		}
	default:
		return nil, 0
	}
	if !freeAfter(text, end) || end+1 < len(text) && text[end] == '-' && isDigit(text[end+1]) {
		return nil, 0
	}
	return number, end
}
