package guard

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"
)

// A token is a secret that its issuer marks by how it begins.
type token struct {
	prefix   string
	chars    *[256]bool // of what follows
	min, max int        // how much follows; max 0: any
	check    func(rest []byte) bool
	strict   bool // nothing that could belong to a longer word may stand before it
}

func charset(extra string) *[256]bool {
	var set [256]bool
	for c := range 256 {
		set[c] = isAlnum(byte(c))
	}
	for _, c := range []byte(extra) {
		set[c] = true
	}
	return &set
}

var (
	alnum     = charset("")
	urlChars  = charset("-_")
	wordChars = charset("_")
	dashChars = charset("-")
	b64Chars  = charset("+/")
	sigChars  = charset("+/%=")
	adChars   = charset("_~.-")
)

// tokens are the forms that the issuers document, or that GitHub's secret scanning knows them by.
var tokens = []token{
	// AWS access key ids (IAM User Guide, "unique identifiers").
	{prefix: "AKIA", chars: alnum, min: 16, max: 16, check: upper}, {prefix: "ASIA", chars: alnum, min: 16, max: 16, check: upper},
	{prefix: "ABIA", chars: alnum, min: 16, max: 16, check: upper}, {prefix: "ACCA", chars: alnum, min: 16, max: 16, check: upper},
	// Google API keys, OAuth client secrets and access tokens.
	{prefix: "AIz", chars: urlChars, min: 36, max: 36, check: func(rest []byte) bool { return rest[0] == 'a' }},
	{prefix: "GOCSPX-", chars: urlChars, min: 28, max: 28}, {prefix: "ya29.", chars: urlChars, min: 20},
	// GitHub.
	{prefix: "ghp_", chars: alnum, min: 36}, {prefix: "gho_", chars: alnum, min: 36}, {prefix: "ghu_", chars: alnum, min: 36},
	{prefix: "ghs_", chars: alnum, min: 36}, {prefix: "ghr_", chars: alnum, min: 36}, {prefix: "github_pat_", chars: wordChars, min: 40},
	// GitLab: tokens of users, deployments, runners, CI jobs, triggers, feeds, mail, agents, OAuth applications.
	{prefix: "glpat-", chars: charset("-_."), min: 20}, {prefix: "gldt-", chars: urlChars, min: 20}, {prefix: "glrt-", chars: urlChars, min: 20},
	{prefix: "glcbt-", chars: urlChars, min: 20}, {prefix: "glptt-", chars: urlChars, min: 20}, {prefix: "glft-", chars: urlChars, min: 20},
	{prefix: "glimt-", chars: urlChars, min: 20}, {prefix: "glagent-", chars: urlChars, min: 20}, {prefix: "gloas-", chars: urlChars, min: 20},
	// Slack.
	{prefix: "xoxb-", chars: dashChars, min: 20}, {prefix: "xoxp-", chars: dashChars, min: 20}, {prefix: "xoxa-", chars: dashChars, min: 20},
	{prefix: "xoxr-", chars: dashChars, min: 20}, {prefix: "xoxs-", chars: dashChars, min: 20}, {prefix: "xoxe-", chars: dashChars, min: 20},
	{prefix: "xoxc-", chars: dashChars, min: 20}, {prefix: "xoxd-", chars: charset("-%"), min: 20}, {prefix: "xapp-", chars: dashChars, min: 20},
	{prefix: "hooks.slack.com/services/", chars: charset("/"), min: 30},
	// Stripe.
	{prefix: "sk_live_", chars: alnum, min: 16}, {prefix: "sk_test_", chars: alnum, min: 16}, {prefix: "rk_live_", chars: alnum, min: 16},
	{prefix: "rk_test_", chars: alnum, min: 16}, {prefix: "whsec_", chars: charset("+/="), min: 32},
	// OpenAI, Anthropic.
	{prefix: "sk-", chars: urlChars, min: 32, check: aiKey, strict: true},
	// npm, PyPI, Hugging Face, SendGrid, DigitalOcean.
	{prefix: "npm_", chars: alnum, min: 36, max: 36}, {prefix: "pypi-", chars: urlChars, min: 50}, {prefix: "hf_", chars: alnum, min: 34, max: 40},
	{prefix: "SG.", chars: charset("-_."), min: 60, max: 72}, {prefix: "dop_v1_", chars: alnum, min: 64, max: 64},
	// Azure storage, Service Bus and the like; shared access signatures.
	{prefix: "AccountKey=", chars: charset("+/="), min: 44}, {prefix: "SharedAccessKey=", chars: charset("+/="), min: 43},
	{prefix: "sig=", chars: sigChars, min: 43, max: 80, strict: true},
}

// secretTriggers lists the tokens by the last byte of their prefix.
var secretTriggers = func() (by [256][]token) {
	for _, t := range tokens {
		c := t.prefix[len(t.prefix)-1]
		by[c] = append(by[c], t)
	}
	return by
}()

func upper(rest []byte) bool {
	for _, c := range rest {
		if 'a' <= c && c <= 'z' {
			return false
		}
	}
	return true
}

// aiKey: what follows sk- in keys of OpenAI (marked by T3BlbkFJ, or by their sort) and of Anthropic, and in the bare form of
// 48 characters that several vendors use.
func aiKey(rest []byte) bool {
	for _, sort := range []string{"ant-", "proj-", "svcacct-", "admin-", "or-v1-"} {
		if bytes.HasPrefix(rest, []byte(sort)) {
			return true
		}
	}
	if bytes.Contains(rest, []byte("T3BlbkFJ")) {
		return true
	}
	letters, digits := 0, 0
	for _, c := range rest {
		switch {
		case isDigit(c):
			digits++
		case isLetter(c):
			letters++
		}
	}
	return len(rest) >= 32 && letters+digits == len(rest) && letters > 0 && digits > 0
}

// secret finds a secret that is recognized at the byte at i. Nothing before least belongs to it.
func secret(text []byte, i, least int) (from, to int) {
	switch text[i] {
	case '-':
		if from, to = pemKey(text, i); to > 0 {
			return from, to
		}
	case 'J':
		if from, to = jwt(text, i); to > 0 {
			return from, to
		}
		if from, to = azureKey(text, i); to > 0 {
			return from, to
		}
	case '~':
		return azureClientSecret(text, i)
	case '=', ':', '>':
		if from, to = assigned40(text, i); to > 0 {
			return from, to
		}
	}
	for k := range secretTriggers[text[i]] {
		t := &secretTriggers[text[i]][k]
		if from = i + 1 - len(t.prefix); from < least || string(text[from:i+1]) != t.prefix {
			continue
		}
		if from > 0 && (isAlnum(text[from-1]) || t.strict && (text[from-1] == '-' || text[from-1] == '_')) {
			continue
		}
		end := i + 1
		for end < len(text) && t.chars[text[end]] && (t.max == 0 || end-i-1 <= t.max) {
			end++
		}
		n := end - i - 1
		if n < t.min || t.max > 0 && n > t.max || t.check != nil && !t.check(text[i+1:end]) {
			continue
		}
		if t.prefix == "sig=" && !signedURL(text, from, end) {
			continue
		}
		return from, end
	}
	return 0, 0
}

// signedURL reports whether a signature stands in a URL of Azure's: a service version or an expiry beside it.
func signedURL(text []byte, from, to int) bool {
	around := text[max(0, from-1024):min(len(text), to+1024)]
	return bytes.Contains(around, []byte("sv=")) || bytes.Contains(around, []byte("se="))
}

var pemBegin, pemEnd = []byte("-----BEGIN "), []byte("-----END ")

// pemKey finds a private key in PEM (RFC 7468) whose first line's dashes end at i. Its end may be missing: then all that
// follows is of it.
func pemKey(text []byte, i int) (from, to int) {
	if from = i - 4; from < 0 || !bytes.HasPrefix(text[from:], pemBegin) {
		return 0, 0
	}
	label := text[from+len(pemBegin):]
	n := bytes.Index(label[:min(len(label), 64)], []byte("-----"))
	if n < 0 || !bytes.Contains(label[:n], []byte("PRIVATE KEY")) {
		return 0, 0
	}
	at := from + len(pemBegin) + n + 5
	end := bytes.Index(text[at:], pemEnd)
	if end < 0 {
		return from, len(text)
	}
	at += end + len(pemEnd)
	close := bytes.Index(text[at:min(len(text), at+64)], []byte("-----"))
	if close < 0 {
		return from, len(text)
	}
	return from, at + close + 5
}

// jwt finds a signed or encrypted JSON Web Token (RFC 7515, 7516) in compact form, whose header begins with eyJ up to i.
func jwt(text []byte, i int) (from, to int) {
	if from = i - 2; from < 0 || string(text[from:i+1]) != "eyJ" || from > 0 && (urlChars[text[from-1]] || text[from-1] == '.') {
		return 0, 0
	}
	header, at := segment(text, from)
	decoded := decodeHeader(header)
	if !bytes.Contains(decoded, []byte(`"alg"`)) {
		return 0, 0
	}
	encrypted := bytes.Contains(decoded, []byte(`"enc"`))
	segments := 2 // payload and signature, of which the last may be empty
	if encrypted {
		segments = 4
	}
	for k := range segments {
		if at >= len(text) || text[at] != '.' {
			return 0, 0
		}
		var seg []byte
		seg, at = segment(text, at+1)
		if k == 0 && len(seg) == 0 && !encrypted {
			return 0, 0
		}
	}
	return from, at
}

func segment(text []byte, i int) ([]byte, int) {
	end := i
	for end < len(text) && urlChars[text[end]] {
		end++
	}
	return text[i:end], end
}

func decodeHeader(header []byte) []byte {
	if len(header) > 16<<10 {
		return nil
	}
	out, err := base64.RawURLEncoding.DecodeString(string(header))
	if err != nil {
		return nil
	}
	return out
}

// azureKey finds a key of Azure's annotated form (Microsoft's "common annotated security key"): 52 characters, the mark JQQJ9,
// and 27 or more that follow. i is at the mark's first J.
func azureKey(text []byte, i int) (from, to int) {
	if from = i - 52; from < 0 || !bytes.HasPrefix(text[i:], []byte("JQQJ9")) || from > 0 && alnum[text[from-1]] {
		return 0, 0
	}
	for _, c := range text[from:i] {
		if !alnum[c] {
			return 0, 0
		}
	}
	for to = i; to < len(text) && alnum[text[to]] && to-i <= 40; {
		to++
	}
	if n := to - from; n < 84 || n > 88 {
		return 0, 0
	}
	return from, to
}

// azureClientSecret finds a client secret of Entra: three characters, a digit, Q~ and 31 to 34 more. i is at the tilde.
func azureClientSecret(text []byte, i int) (from, to int) {
	if from = i - 5; from < 0 || text[i-1] != 'Q' || !isDigit(text[i-2]) || from > 0 && adChars[text[from-1]] {
		return 0, 0
	}
	for _, c := range text[from : i-2] {
		if !adChars[c] {
			return 0, 0
		}
	}
	for to = i + 1; to < len(text) && adChars[text[to]] && to-i <= 35; {
		to++
	}
	if n := to - i - 1; n < 31 || n > 34 {
		return 0, 0
	}
	return from, to
}

// assigned40 finds a secret access key of AWS, 40 characters of base64, in an assignment to what is called one. i is at the sign
// of the assignment.
func assigned40(text []byte, i int) (from, to int) {
	before := i
	for before > 0 && i-before < 4 && bytes.IndexByte([]byte(" \"'\t"), text[before-1]) >= 0 {
		before--
	}
	if before == 0 || bytes.IndexByte([]byte("yYtT"), text[before-1]) < 0 { // …key, …secret
		return 0, 0
	}
	for from = i + 1; from < len(text) && from-i <= 6 && bytes.IndexByte([]byte(" \"'\t=>"), text[from]) >= 0; {
		from++
	}
	if to = endOf40(text, from); to == 0 || !awsSecretName(text[max(0, before-contextSize):before]) {
		return 0, 0
	}
	return from, to
}

func awsSecretName(name []byte) bool {
	return named(name, "secret access key", "secret key", "secretkey", "secretaccesskey", "aws secret", "access key secret", "secret")
}

// endOf40 is the index past exactly 40 characters of base64 at i; 0 if there are fewer or more.
func endOf40(text []byte, i int) int {
	end := i
	for end < len(text) && b64Chars[text[end]] && end-i <= 40 {
		end++
	}
	if end-i != 40 || end < len(text) && text[end] == '=' {
		return 0
	}
	return end
}

// secretMember reports whether all of a member's text is a secret for what the member is called.
func secretMember(text, name []byte) bool {
	switch len(text) {
	case 40:
		return endOf40(text, 0) == 40 && awsSecretName(name)
	case 88: // Azure storage and Cosmos DB: 64 bytes of base64
		return bytes.HasSuffix(text, []byte("==")) && utf8.Valid(text) &&
			named(name, "account key", "storage key", "primary key", "secondary key", "primary master key", "secondary master key", "shared access key", "accountkey")
	}
	return false
}
