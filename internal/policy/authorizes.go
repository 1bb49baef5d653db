package policy

// Authorizes reports whether rules decide about calls of the target, so that some of what it lists may be hidden.
func (t *Target) Authorizes() bool { return t != nil && len(t.authz) > 0 }
