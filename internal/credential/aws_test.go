package credential

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// The examples of the Amazon S3 API Reference, "Signature Calculations for the Authorization Header", and cases of
// AWS's Signature Version 4 test suite. Both give keys, request and signature.
func TestSignKnownAnswers(t *testing.T) {
	s3Keys := aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	suiteKeys := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	stsKeys := suiteKeys
	stsKeys.SessionToken = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
	s3Time := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	suiteTime := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	const bucket, host = "https://examplebucket.s3.amazonaws.com", "https://example.amazonaws.com"
	for _, tt := range []struct {
		name, service, method, url, body string
		header                           http.Header
		keys                             aws.Credentials
		at                               time.Time
		signed, signature                string
	}{
		{"GET object", "s3", "GET", bucket + "/test.txt", "", http.Header{"Range": {"bytes=0-9"}}, s3Keys, s3Time,
			"host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"PUT object", "s3", "PUT", bucket + "/test%24file.text", "Welcome to Amazon S3.", http.Header{"Date": {"Fri, 24 May 2013 00:00:00 GMT"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}}, s3Keys, s3Time,
			"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"GET bucket lifecycle", "s3", "GET", bucket + "/?lifecycle", "", http.Header{}, s3Keys, s3Time,
			"host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"list objects", "s3", "GET", bucket + "/?prefix=J&max-keys=2", "", http.Header{}, s3Keys, s3Time,
			"host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},

		{"get-vanilla", "service", "GET", host + "/", "", http.Header{}, suiteKeys, suiteTime,
			"host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"get-vanilla-query-order-key-case", "service", "GET", host + "/?Param2=value2&Param1=value1", "", http.Header{}, suiteKeys, suiteTime,
			"host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{"get-header-value-trim", "service", "GET", host + "/", "", http.Header{"My-Header1": {" value1"}, "My-Header2": {` "a   b   c"`}}, suiteKeys, suiteTime,
			"host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{"post-vanilla", "service", "POST", host + "/", "", http.Header{}, suiteKeys, suiteTime,
			"host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"post-header-key-sort", "service", "POST", host + "/", "", http.Header{"My-Header1": {"value1"}}, suiteKeys, suiteTime,
			"host;my-header1;x-amz-date", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
		{"post-x-www-form-urlencoded", "service", "POST", host + "/", "Param1=value1", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, suiteKeys, suiteTime,
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
		{"post-sts-header-before", "service", "POST", host + "/", "", http.Header{}, stsKeys, suiteTime,
			"host;x-amz-date;x-amz-security-token", "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			if err := (Token{keys: tt.keys}).Sign(t.Context(), tt.method, u, tt.header, []byte(tt.body), tt.service, "us-east-1", tt.at); err != nil {
				t.Fatal(err)
			}
			want := "SignedHeaders=" + tt.signed + ", Signature=" + tt.signature
			if got := tt.header.Get("Authorization"); !strings.HasSuffix(got, want) {
				t.Errorf("Authorization: %s\nwant … %s", got, want)
			}
		})
	}
}

func TestSignCoversAll(t *testing.T) {
	sign := func(method, address, body string, h http.Header) string {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		token := Token{keys: aws.Credentials{AccessKeyID: "AK", SecretAccessKey: "SK"}}
		if err := token.Sign(context.Background(), method, u, h, []byte(body), "bedrock-agentcore", "eu-west-1", time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
		return h.Get("Authorization")
	}
	base := sign("POST", "https://h/a%3Ab?q=1", "body", http.Header{"Mcp-Session-Id": {"s"}})
	for name, other := range map[string]string{
		"method": sign("GET", "https://h/a%3Ab?q=1", "body", http.Header{"Mcp-Session-Id": {"s"}}),
		"host":   sign("POST", "https://i/a%3Ab?q=1", "body", http.Header{"Mcp-Session-Id": {"s"}}),
		"path":   sign("POST", "https://h/a:b?q=1", "body", http.Header{"Mcp-Session-Id": {"s"}}),
		"query":  sign("POST", "https://h/a%3Ab?q=2", "body", http.Header{"Mcp-Session-Id": {"s"}}),
		"body":   sign("POST", "https://h/a%3Ab?q=1", "bodY", http.Header{"Mcp-Session-Id": {"s"}}),
		"header": sign("POST", "https://h/a%3Ab?q=1", "body", http.Header{"Mcp-Session-Id": {"t"}}),
	} {
		if other == base {
			t.Errorf("another %s has the same signature", name)
		}
	}
	// What a modifier or the client put there does not stay, and what may change on the way is not covered.
	h := http.Header{"Mcp-Session-Id": {"s"}, "Authorization": {"Bearer x"}, "X-Amz-Security-Token": {"evil"}, "X-Amz-Date": {"x"}, "X-Amz-Content-Sha256": {"x"}, "Traceparent": {"00-1"}}
	if got := sign("POST", "https://h/a%3Ab?q=1", "body", h); got != base {
		t.Errorf("signed %s, want %s", got, base)
	}
	if h.Get("X-Amz-Security-Token") != "" || h.Get("X-Amz-Content-Sha256") != "" || h.Get("Traceparent") == "" {
		t.Errorf("headers %v", h)
	}
}
