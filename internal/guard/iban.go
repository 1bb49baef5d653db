package guard

// ibanLengths are the lengths of account numbers by country (SWIFT, IBAN registry).
var ibanLengths = map[string]int{
	"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28,
	"CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
	"FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
	"IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
	"LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28,
	"NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
	"SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26,
	"UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}

// iban finds an account number (ISO 13616) whose check digits begin at i: of its country's length, in one piece or in
// groups with one blank or dash between them, with a valid check (ISO 7064, mod 97-10).
func iban(text []byte, i int) (from, to int) {
	from = i - 2
	if from < 0 || !isLetter(text[from]) || !isLetter(text[from+1]) || from > 0 && (isAlnum(text[from-1]) || text[from-1] == '_') {
		return 0, 0
	}
	want := ibanLengths[string([]byte{text[from] &^ 0x20, text[from+1] &^ 0x20})]
	if want == 0 {
		return 0, 0
	}
	var buf [40]byte
	number := buf[:0]
	for at := from; at < len(text) && len(number) < want; at++ {
		c := text[at]
		switch {
		case isDigit(c):
		case isLetter(c):
			c &^= 0x20
		case (c == ' ' || c == '-') && at+1 < len(text) && isAlnum(text[at+1]):
			continue
		default:
			return 0, 0
		}
		number = append(number, c)
		to = at + 1
	}
	if len(number) != want || !freeAfter(text, to) || !isDigit(number[2]) || !isDigit(number[3]) {
		return 0, 0
	}
	rest := 0
	for k := range number {
		c := number[(k+4)%len(number)]
		if isDigit(c) {
			rest = (rest*10 + int(c-'0')) % 97
		} else {
			rest = (rest*100 + int(c-'A') + 10) % 97
		}
	}
	if rest != 1 {
		return 0, 0
	}
	return from, to
}
