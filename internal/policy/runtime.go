package policy

import "github.com/sluicegate/sluice/internal/credential"

// Runtime is what the compiled policies of one proxy share, and what outlives them: a policy that is compiled anew goes
// on with what it had. It is safe for concurrent use. The zero value is ready.
type Runtime struct {
	hashing  hashing          // of basicAuth
	limits   limits           // of localRateLimit
	tokens   credential.Store // of backendAuth
	services services         // of ai
}

// NewRuntime returns an empty one.
func NewRuntime() *Runtime { return &Runtime{} }
