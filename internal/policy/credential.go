package policy

import (
	"errors"
	"fmt"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// credential returns what c stands for, without a final line break: files and secrets tend to end in one.
func (r Resolver) credential(c *policyv1.Credential) (Secret, error) {
	var value string
	switch s := c.GetSource().(type) {
	case *policyv1.Credential_Value:
		value = s.Value
	case *policyv1.Credential_Secret:
		b, err := lookUp(r.Secret, s.Secret)
		if err != nil {
			return Secret{}, lookUpError("secret", s.Secret, err)
		}
		value = string(b)
	case *policyv1.Credential_File:
		b, err := lookUp(r.File, s.File)
		if err != nil {
			return Secret{}, lookUpError("file", s.File, err)
		}
		value = string(b)
	case *policyv1.Credential_Env:
		v, err := lookUp(r.Env, s.Env)
		if err != nil {
			return Secret{}, lookUpError("environment variable", s.Env, err)
		}
		value = v
	case *policyv1.Credential_Sealed:
		return Secret{}, ErrUnknown // only the control plane can open it, and sends it as a secret
	default:
		return Secret{}, errors.New("has no source; write a value, or one of `secret`, `file` and `env`")
	}
	value = strings.TrimSuffix(strings.TrimSuffix(value, "\n"), "\r")
	if value == "" {
		return Secret{}, errors.New("is empty")
	}
	return Secret{value}, nil
}

func lookUp[T any](find func(string) (T, error), name string) (T, error) {
	if find == nil {
		var none T
		return none, ErrUnknown
	}
	return find(name)
}

func lookUpError(what, name string, err error) error {
	if errors.Is(err, ErrUnknown) {
		return err
	}
	return fmt.Errorf("%s %q: %w", what, name, err)
}
