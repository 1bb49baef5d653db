package guard

import (
	"strings"
	"testing"
)

func filterOf(t testing.TB, masks bool, names ...string) *Filter {
	t.Helper()
	var rules []Rule
	for _, n := range names {
		r, err := Builtin(n, n)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return NewFilter(masks, rules)
}

// masksOf is text as the built-in masks it.
func masksOf(t testing.TB, name, text, member string) string {
	hits := filterOf(t, true, name).find(nil, []byte(text), []byte(member))
	return string(masked(nil, []byte(text), hits))
}

// Published cases: those of the standards and registries, the numbers that schemes, regulators and vendors give out for tests,
// documentation and drama, and the forms that look alike.
func TestBuiltins(t *testing.T) {
	for name, cases := range map[string]struct {
		is  []string // found as a whole, also within text
		not []string
	}{
		"email": {
			is: []string{
				"John.Smith@example.com", "simple@example.com", "very.common@example.com", "x@example.com", "FirstName.LastName@EasierReading.org",
				"long.email-address-with-hyphens@and.subdomains.example.com", "user.name+tag+sorting@example.com", "name@xn--bcher-kva.example",
				"user%example.com@example.org", "user-@example.org", "o'hara@example.co.uk", "a@b.museum", "postmaster@xn--fiqs8s.xn--fiqs8s",
				"用户@例子.广告", "Dörte@Sörensen.example.com", "θσερ@εχαμπλε.ψομ",
			},
			not: []string{
				"abc.example.com", "admin@example", "@example.com", "a@", "a@b", "i.like.underscores@but_they_are_not_allowed_in_this_part",
				"node@18.2.0", "icon@2x.png", "user@-example", "a.@example.com", "x@y..z", "@types/node@18", "3 @ 4.50",
			},
		},
		"creditCard": {
			is: []string{
				"4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "4012888888881881", "4222222222222", "4000056655665556",
				"5555555555554444", "5105105105105100", "2223003122003222", "2223000048400011", "378282246310005", "3782 822463 10005", "371449635398431",
				"30569309025904", "38520000023237", "3056 930902 5904", "36227206271667", "6011111111111117", "6011000990139424", "3530111333300000", "3566002020360505",
				"6200000000000005", "6205500000000000004", "2200000000000004", "6759649826438453", "6304000000000000",
			},
			not: []string{
				"4111111111111112", "4111 1111 1111 1112", "1234567890123456", "0000000000000000", "411111111111111", "41111111111111111111",
				"4111_1111_1111_1111", "a4111111111111111", "4111111111111111b", "1764150000000000", "4111 1111 1111", "4111 11 11 1111 1111",
				"550e8400-e29b-41d4-a716-446655440000", "9999 9999 9999 9995",
			},
		},
		"ssn": {
			is:  []string{"123-45-6789", "536-90-4399", "001-01-0001", "899 99 9999", "665-12-3456"},
			not: []string{"000-12-3456", "666-12-3456", "900-12-3456", "987-65-4320", "123-00-4567", "123-45-0000", "078-05-1120", "219-09-9999", "123456789", "123-45-67890", "1123-45-6789", "123-45 6789", "2023-12-45-6789"},
		},
		"caSin": {
			is:  []string{"046 454 286", "046-454-286", "130 692 544"},
			not: []string{"046 454 287", "000 000 000", "800 000 002", "046454286", "046 454-286", "1046 454 286", "046 454 2861"},
		},
		"phoneNumber": {
			is: []string{
				"+1 202-555-0123", "(202) 555-0123", "202-555-0123", "202.555.0123", "1-202-555-0123", "+12025550123", "1 (202) 555-0123",
				"+44 20 7946 0958", "020 7946 0958", "07700 900123", "+447700900123", "+33 1 99 00 12 34", "01 99 00 12 34", "01.99.00.12.34",
				"+49 30 23125000", "030 23125000", "0171/1234567", "0049 30 23125 000", "+41 44 668 18 00", "+61 491 570 156", "+91 98765 43210", "+55 (11) 91234-5678",
			},
			not: []string{
				"2025550123", "12025550123", "+0123456789", "+1234567", "+12345678901234567", "2026-11-26", "01-02-2026", "01/02/2026 10:30", "192.168.100.200",
				"010.000.000.001", "102-555-0123", "202-155-0123", "911-555-0123", "202-911-0123", "555-0123", "v1.2.3.4", "0.123456789", "1 000 000 000", "00000000000", "3.14159265358979",
				"4111 1111 1111 1111", "2026-11-26T09:53:43", "x+12025550123", "UTC+0530",
			},
		},
		"iban": {
			is: strings.Split("AD12 0001 2030 2003 5910 0100|AE07 0331 2345 6789 0123 456|AL47 2121 1009 0000 0002 3569 8741|AT61 1904 3002 3457 3201|AZ21 NABZ 0000 0000 1370 1000 1944|"+
				"BA39 1290 0794 0102 8494|BE68 5390 0754 7034|BG80 BNBG 9661 1020 3456 78|BH67 BMAG 0000 1299 1234 56|CH93 0076 2011 6238 5295 7|CY17 0020 0128 0000 0012 0052 7600|"+
				"CZ65 0800 0000 1920 0014 5399|DE89 3704 0044 0532 0130 00|DK50 0040 0440 1162 43|EE38 2200 2210 2014 5685|ES91 2100 0418 4502 0005 1332|FI21 1234 5600 0007 85|"+
				"FO62 6460 0001 6316 34|FR14 2004 1010 0505 0001 3M02 606|GB29 NWBK 6016 1331 9268 19|GE29 NB00 0000 0101 9049 17|GI75 NWBK 0000 0000 7099 453|GL89 6471 0001 0002 06|"+
				"GR16 0110 1250 0000 0001 2300 695|HR12 1001 0051 8630 0016 0|HU42 1177 3016 1111 1018 0000 0000|IE29 AIBK 9311 5212 3456 78|IL62 0108 0000 0009 9999 999|"+
				"IS14 0159 2600 7654 5510 7303 39|IT60 X054 2811 1010 0000 0123 456|KW81 CBKU 0000 0000 0000 1234 5601 01|KZ86 125K ZT50 0410 0100|LB62 0999 0000 0001 0019 0122 9114|"+
				"LI21 0881 0000 2324 013A A|LT12 1000 0111 0100 1000|LU28 0019 4006 4475 0000|LV80 BANK 0000 4351 9500 1|MC58 1122 2000 0101 2345 6789 030|ME25 5050 0001 2345 6789 51|"+
				"MK07 2501 2000 0058 984|MR13 0002 0001 0100 0012 3456 753|MT84 MALT 0110 0001 2345 MTLC AST0 01S|MU17 BOMM 0101 1010 3030 0200 000M UR|NL91 ABNA 0417 1643 00|NO93 8601 1117 947|"+
				"PL61 1090 1014 0000 0712 1981 2874|PT50 0002 0123 1234 5678 9015 4|RO49 AAAA 1B31 0075 9384 0000|RS35 2600 0560 1001 6113 79|SA03 8000 0000 6080 1016 7519|"+
				"SE45 5000 0000 0583 9825 7466|SI56 2633 0001 2039 086|SK31 1200 0000 1987 4263 7541|SM86 U032 2509 8000 0000 0270 100|TN59 1000 6035 1835 9847 8831|"+
				"TR33 0006 1005 1978 6457 8413 26|GB82WEST12345698765432|gb82 west 1234 5698 7654 32|DE89-3704-0044-0532-0130-00", "|"),
			not: []string{"GB82 WEST 1234 5698 7654 33", "DE89 3704 0044 0532 0130", "XX82 WEST 1234 5698 7654 32", "AGB82WEST12345698765432", "GB82WEST123456987654321", "DE00370400440532013000"},
		},
		"secrets": {
			is: []string{
				"AKIAIOSFODNN7EXAMPLE", "AKIAI44QH8DHBEXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
				"GOCSPX-" + strings.Repeat("aB3-", 7), "ya29.a0AfH6SMBx-" + strings.Repeat("x1", 20),
				"ghp_" + strings.Repeat("aB3", 12), "ghs_" + strings.Repeat("aB3", 12), "github_pat_" + strings.Repeat("a", 22) + "_" + strings.Repeat("B1", 29) + "z",
				"glpat-" + strings.Repeat("x", 20), "xoxb-1234567890-1234567890123-" + strings.Repeat("aB", 12), "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
				"sk_test_4eC39HqLyjWDarjtT1zdp7dc", "rk_live_" + strings.Repeat("a1", 12), "sk-" + strings.Repeat("a1", 10) + "T3BlbkFJ" + strings.Repeat("b2", 10),
				"sk-proj-" + strings.Repeat("aB_-", 20), "sk-ant-api03-" + strings.Repeat("aB-_", 24), "sk-" + strings.Repeat("a1", 24),
				"npm_" + strings.Repeat("aB3", 12), "hf_" + strings.Repeat("a", 34),
				"AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
				"SharedAccessKey=" + strings.Repeat("aB3+", 10) + "abc=", "abc7Q~" + strings.Repeat("x._-", 8),
				strings.Repeat("a1B2", 13) + "JQQJ99" + "BAAC" + strings.Repeat("x", 22),
				// RFC 7519, section 3.1, and RFC 7516, appendix A.1.
				"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
				"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGe.48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6ji.XFBoMYUZodetZdvTiFvSkQ",
				"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n-----END PRIVATE KEY-----",
				"-----BEGIN RSA PRIVATE KEY-----\\nMIIEow\\n-----END RSA PRIVATE KEY-----", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU",
				"-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----",
			},
			not: []string{
				"AKIA", "AKIAIOSFODNN7EXAMPL", "AKIAIOSFODNN7EXAMPLEX", "akiaiosfodnn7example", "AKIAiosfodnn7example", "XAKIAIOSFODNN7EXAMPLE",
				"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "da39a3ee5e6b4b0d3255bfef95601890afd80709", "task-management-for-software-engineering-teams", "sk-learn-is-a-python-library-of-machine-learning-tools",
				"ghp_short", "pk_live_" + strings.Repeat("a1", 12), "eyJub3QiOiJhIGp3dCJ9", "eyJhIjoxfQ.eyJiIjoyfQ.c2ln", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
				"-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==", "sig=abc", "--------------------",
			},
		},
	} {
		mask := string(builtins[name].mask)
		for _, s := range cases.is {
			want, rest := mask, s
			if at := strings.Index(s, "hooks.slack"); at > 0 {
				want, rest = s[:at]+mask, s[at:]
			}
			if got := masksOf(t, name, s, ""); got != want {
				t.Errorf("%s: %q is masked as %q", name, s, got)
			}
			within := "at " + rest + ", or so"
			if strings.HasPrefix(rest, "-----BEGIN OPENSSH") {
				continue // it has no end
			}
			if got := masksOf(t, name, within, ""); got != "at "+mask+", or so" {
				t.Errorf("%s: %q is masked as %q", name, within, got)
			}
			if got := masksOf(t, name, "«"+rest+"» ("+rest+")", ""); got != "«"+mask+"» ("+mask+")" {
				t.Errorf("%s: %q in brackets is masked as %q", name, rest, got)
			}
		}
		for _, s := range cases.not {
			if got := masksOf(t, name, s, ""); got != s {
				t.Errorf("%s: %q is masked as %q", name, s, got)
			}
		}
	}
}

// Some count only for what they are called.
func TestBuiltinsInContext(t *testing.T) {
	const awsKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	const cosmos = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
	for _, tt := range []struct{ builtin, text, member, want string }{
		{"ssn", "123456789", "ssn", "<SSN>"},
		{"ssn", "123456789", "employeeSSN", "<SSN>"},
		{"ssn", "123456789", "assnumber", "123456789"},
		{"ssn", "his social security number: 123456789.", "", "his social security number: <SSN>."},
		{"ssn", "000456789", "ssn", "000456789"},
		{"caSin", "046454286", "sin", "<CA_SIN>"},
		{"caSin", "046454286", "business", "046454286"},
		{"caSin", "SIN 046454286", "note", "SIN <CA_SIN>"},
		{"phoneNumber", "2025550123", "phone", "<PHONE_NUMBER>"},
		{"phoneNumber", "2025550123", "mobile_phone", "<PHONE_NUMBER>"},
		{"phoneNumber", "2025550123", "orderId", "2025550123"},
		{"phoneNumber", "room 2025550123", "phone", "room 2025550123"},
		{"secrets", awsKey, "SecretAccessKey", "<SECRET>"},
		{"secrets", awsKey, "aws_secret_access_key", "<SECRET>"},
		{"secrets", awsKey, "digest", awsKey},
		{"secrets", "aws_secret_access_key = " + awsKey, "", "aws_secret_access_key = <SECRET>"},
		{"secrets", "AWS_SECRET_ACCESS_KEY=" + awsKey + "\n", "", "AWS_SECRET_ACCESS_KEY=<SECRET>\n"},
		{"secrets", `{"SecretAccessKey": "` + awsKey + `"}`, "", `{"SecretAccessKey": "<SECRET>"}`},
		{"secrets", "<SecretAccessKey>" + awsKey + "</SecretAccessKey>", "", "<SecretAccessKey><SECRET></SecretAccessKey>"},
		{"secrets", "secretKey: '" + awsKey + "'", "", "secretKey: '<SECRET>'"},
		{"secrets", cosmos, "primaryMasterKey", "<SECRET>"},
		{"secrets", cosmos, "integrity", cosmos},
		{"secrets", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=" + cosmos + ";EndpointSuffix=core.windows.net", "", "DefaultEndpointsProtocol=https;AccountName=a;<SECRET>;EndpointSuffix=core.windows.net"},
		{"secrets", "https://a.blob.core.windows.net/c?sv=2022-11-02&se=2026-12-01&sr=c&sp=rl&sig=" + strings.Repeat("aB3%2B", 8) + "%3D", "", "https://a.blob.core.windows.net/c?sv=2022-11-02&se=2026-12-01&sr=c&sp=rl&<SECRET>"},
		{"email", "请联系bob@example.com谢谢", "", "请联系<EMAIL_ADDRESS>谢谢"},
		{"email", "<mailto:bob@example.com>, 'eve@example.org'.", "", "<mailto:<EMAIL_ADDRESS>>, '<EMAIL_ADDRESS>'."},
		{"email", "bob@example.com,eve@example.com;al@example.com", "", "<EMAIL_ADDRESS>,<EMAIL_ADDRESS>;<EMAIL_ADDRESS>"},
		{"creditCard", "卡号4111111111111111。", "", "卡号<CREDIT_CARD>。"},
		{"creditCard", "1 4111 1111 1111 1111 12/27 123", "", "1 <CREDIT_CARD> 12/27 123"},
		{"phoneNumber", "call +44 20 7946 0958 or (202) 555-0123 now", "", "call <PHONE_NUMBER> or <PHONE_NUMBER> now"},
	} {
		if got := masksOf(t, tt.builtin, tt.text, tt.member); got != tt.want {
			t.Errorf("%s in %q: %q is masked as %q, want %q", tt.builtin, tt.member, tt.text, got, tt.want)
		}
	}
}
