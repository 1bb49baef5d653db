package api

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const (
	severityError = adminv1.Diagnostic_SEVERITY_ERROR
	severityNote  = adminv1.Diagnostic_SEVERITY_NOTE
)

func (e *Invalid) Error() string {
	var first *adminv1.Diagnostic
	errors := 0
	for _, d := range e.Diagnostics {
		if !resource.Failed([]*adminv1.Diagnostic{d}) {
			continue
		}
		if errors++; first == nil {
			first = d
		}
	}
	if errors > 1 {
		return fmt.Sprintf("%s (and %d more)", resource.Format(first), errors-1)
	}
	return resource.Format(first)
}

// status carries all diagnostics at once.
func (e *Invalid) status() error {
	s := status.New(codes.InvalidArgument, e.Error())
	if detailed, err := s.WithDetails(protoadapt.MessageV1Of(&adminv1.Diagnostics{Diagnostics: e.Diagnostics})); err == nil {
		s = detailed
	}
	return s.Err()
}

// refuse returns an *Invalid if there is an error among the diagnostics.
func refuse(diagnostics []*adminv1.Diagnostic) error {
	if resource.Failed(diagnostics) {
		return &Invalid{Diagnostics: unique(diagnostics)}
	}
	return nil
}

// unique drops what two checks found alike.
func unique(diagnostics []*adminv1.Diagnostic) []*adminv1.Diagnostic {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(diagnostics), func(d *adminv1.Diagnostic) bool {
		key := resource.Format(d)
		defer func() { seen[key] = true }()
		return seen[key]
	})
}
