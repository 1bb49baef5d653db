package policy

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sluicegate/sluice/internal/credential"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// What AWS takes; see the API reference of STS, AssumeRole.
var (
	awsRegion      = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	awsService     = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)
	awsRoleARN     = regexp.MustCompile(`^arn:[a-z0-9-]+:iam::[0-9]{12}:role/[!-~]{1,512}$`)
	awsSessionName = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)
	awsExternalID  = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]+$`)
	awsTagText     = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+@-]*$`)
)

const (
	defaultSessionName = "sluice"
	maxTags            = 50
)

func compileAWS(a *policyv1.AwsAuth, r Resolver, field string, errs *problems) *awsAuth {
	out := &awsAuth{field: field, service: a.GetServiceName(), tokens: r.tokens()}
	switch {
	case a.GetServiceName() == "":
		errs.add(field+".serviceName", "is missing: the name in the signature's scope, such as bedrock-agentcore, execute-api, lambda or s3")
	case !awsService.MatchString(a.GetServiceName()):
		errs.add(field+".serviceName", "%q is no name of a service in a signature's scope", a.GetServiceName())
	}
	keys, known := compileAWSKeys(a, r, field, errs)
	web := a.GetWebIdentity()
	if web != nil && (a.GetAccessKeyId() != nil || a.GetSecretAccessKey() != nil || a.GetSessionToken() != nil) {
		errs.add(field+".webIdentity", "and keys cannot both be set; keep one identity")
	}
	ambient := keys == nil && web == nil && known
	if ambient {
		r.identity("aws", field, errs)
	}
	region, regionKnown := awsRegionOf(a, ambient, r, field+".region", errs)
	webIdentity, webKnown := compileWebIdentity(web, r, field+".webIdentity", errs)
	if a.GetStsEndpoint() != "" {
		checkEndpoint(a.GetStsEndpoint(), field+".stsEndpoint", errs)
		if web == nil && a.GetAssumeRole() == nil {
			errs.add(field+".stsEndpoint", "belongs to `assumeRole` or `webIdentity`, and neither is set; remove it")
		}
	}
	out.role = compileRole(a.GetAssumeRole(), field+".assumeRole", errs)
	if !known || !webKnown || !regionKnown || out.tokens == nil {
		return out
	}
	cloud := ""
	if ambient {
		cloud = "aws"
	}
	out.identity = r.scope(cloud).AWS(region, a.GetStsEndpoint(), keys, webIdentity, out.tokens)
	return out
}

// compileAWSKeys returns nil for none. They are not known where one of them is not, or is wrong.
func compileAWSKeys(a *policyv1.AwsAuth, r Resolver, field string, errs *problems) (keys *credential.AWSKeys, known bool) {
	if (a.GetAccessKeyId() == nil) != (a.GetSecretAccessKey() == nil) {
		errs.add(field, "needs both `accessKeyId` and `secretAccessKey`, or neither")
		return nil, false
	}
	if a.GetAccessKeyId() == nil {
		if a.GetSessionToken() != nil {
			errs.add(field+".sessionToken", "belongs to `accessKeyId` and `secretAccessKey`, and neither is set")
		}
		return nil, a.GetSessionToken() == nil
	}
	id, idKnown := r.secret(a.GetAccessKeyId(), field+".accessKeyId", errs)
	secret, secretKnown := r.secret(a.GetSecretAccessKey(), field+".secretAccessKey", errs)
	token, tokenKnown := r.optional(a.GetSessionToken(), field+".sessionToken", errs)
	for _, f := range []struct{ name, value string }{{"accessKeyId", id}, {"sessionToken", token}} { // which stand in headers
		if strings.ContainsFunc(f.value, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == ',' }) {
			errs.add(field+"."+f.name, "the value holds a blank, a comma or a control character, which none of AWS does")
			return nil, false
		}
	}
	if !idKnown || !secretKnown || !tokenKnown {
		return nil, false
	}
	return &credential.AWSKeys{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token}, true
}

// awsRegionOf reads AWS_REGION where none is set; that of an ambient identity comes with it.
func awsRegionOf(a *policyv1.AwsAuth, ambient bool, r Resolver, field string, errs *problems) (region string, known bool) {
	if region = a.GetRegion(); region == "" {
		if ambient {
			return "", true
		}
		source := &policyv1.Credential{Source: &policyv1.Credential_Env{Env: "AWS_REGION"}}
		var own problems
		if region, known = r.secret(source, field, &own); !known {
			for _, e := range FieldErrors(own.err()) {
				errs.add(field, "is missing; without it, %s", e.Reason)
			}
			return "", false
		}
	}
	if !awsRegion.MatchString(region) {
		errs.add(field, "%q is no region, such as eu-west-1", region)
		return "", false
	}
	return region, true
}

func compileWebIdentity(w *policyv1.AwsWebIdentity, r Resolver, field string, errs *problems) (out *credential.AWSWebIdentity, known bool) {
	if w == nil {
		return nil, true
	}
	checkRoleARN(w.GetRoleArn(), field+".roleArn", errs)
	name := w.GetSessionName()
	if name == "" {
		name = defaultSessionName
	}
	if err := checkSessionName(name); err != nil {
		errs.add(field+".sessionName", "%v", err)
	}
	token, known := r.secret(w.GetToken(), field+".token", errs)
	if !known {
		return nil, false
	}
	return &credential.AWSWebIdentity{RoleARN: w.GetRoleArn(), Token: token, SessionName: name}, true
}

func checkRoleARN(arn, field string, errs *problems) {
	if !awsRoleARN.MatchString(arn) {
		errs.add(field, "%q is no ARN of a role, such as arn:aws:iam::123456789012:role/NAME", arn)
	}
}

func checkSessionName(name string) error {
	if !awsSessionName.MatchString(name) {
		return fmt.Errorf("%q is no name of a session: 2 to 64 letters, digits and _+=,.@- (STS)", shown(name))
	}
	return nil
}

// awsRole is a role to assume, whose session may depend on the call.
type awsRole struct {
	role credential.AWSRole // without what depends on it
	name text
	tags []awsTag
}

type awsTag struct {
	key   string
	value text
}

func compileRole(a *policyv1.AwsAssumeRole, field string, errs *problems) *awsRole {
	if a == nil {
		return nil
	}
	checkRoleARN(a.GetRoleArn(), field+".roleArn", errs)
	out := &awsRole{role: credential.AWSRole{ARN: a.GetRoleArn(), ExternalID: a.GetExternalId()}, name: text{literal: defaultSessionName}}
	if id := a.GetExternalId(); id != "" && (len(id) < 2 || len(id) > 1224 || !awsExternalID.MatchString(id)) {
		errs.add(field+".externalId", "is no external id: 2 to 1224 letters, digits and _+=,.@:/- (STS)")
	}
	if d := a.GetDuration(); d != nil {
		out.role.Duration = d.AsDuration()
		if out.role.Duration < 15*time.Minute || out.role.Duration > 12*time.Hour || out.role.Duration%time.Second != 0 {
			errs.add(field+".duration", "%v is out of range: whole seconds from 15m to 12h", out.role.Duration)
		}
	}
	if a.GetSessionName() != nil {
		before := len(errs.errs)
		out.name = compileText(a.GetSessionName(), field+".sessionName", errs)
		if out.name.rule == nil && len(errs.errs) == before {
			if err := checkSessionName(out.name.literal); err != nil {
				errs.add(field+".sessionName", "%v", err)
			}
		}
	}
	if len(a.GetTags()) > maxTags {
		errs.add(field+".tags", "holds %d tags; STS takes at most %d", len(a.GetTags()), maxTags)
	}
	seen := map[string]bool{}
	for i, t := range a.GetTags() {
		at := fmt.Sprintf("%s.tags[%d]", field, i)
		key := strings.ToLower(t.GetKey()) // STS tells keys apart without case
		switch {
		case t.GetKey() == "" || utf8.RuneCountInString(t.GetKey()) > 128 || !awsTagText.MatchString(t.GetKey()):
			errs.add(at+".key", "%q is no key of a tag: 1 to 128 letters, digits, blanks and _.:/=+-@ (STS)", shown(t.GetKey()))
		case seen[key]:
			errs.add(at+".key", "%q is the key of another tag too, but for case", t.GetKey())
		}
		seen[key] = true
		value := compileText(t.GetValue(), at+".value", errs)
		if err := checkTagValue(value.literal); err != nil {
			errs.add(at+".value", "%v", err)
		}
		out.tags = append(out.tags, awsTag{t.GetKey(), value})
	}
	return out
}

func checkTagValue(v string) error {
	if utf8.RuneCountInString(v) > 256 || !awsTagText.MatchString(v) {
		return fmt.Errorf("%q is no value of a tag: at most 256 letters, digits, blanks and _.:/=+-@ (STS)", shown(v))
	}
	return nil
}

// shown is a text of a caller as far as it is fit for a log line.
func shown(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// of is the role with the session that a call takes. What STS would not take is an error: to change it could make
// one session of two callers.
func (a *awsRole) of(c *Call) (*credential.AWSRole, error) {
	if a == nil {
		return nil, nil
	}
	role := a.role
	var err error
	if role.SessionName, err = a.name.of(c); err == nil {
		err = checkSessionName(role.SessionName)
	}
	if err != nil {
		return nil, fmt.Errorf("assumeRole.sessionName: %w", err)
	}
	if len(a.tags) > 0 {
		role.Tags = make(map[string]string, len(a.tags))
	}
	for _, t := range a.tags {
		v, err := t.value.of(c)
		if err == nil {
			err = checkTagValue(v)
		}
		if err != nil {
			return nil, fmt.Errorf("assumeRole.tags[%s]: %w", t.key, err)
		}
		role.Tags[t.key] = v
	}
	return &role, nil
}
