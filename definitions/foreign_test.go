package definitions

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// A name in foreignFields must not be one that the model has, and must stand for a field that the model has.
func TestForeignFieldsFitTheModel(t *testing.T) {
	file := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor().ParentFile()
	for message, fields := range foreignFields {
		descriptor := file.Messages().ByName(message)
		if descriptor == nil {
			t.Fatalf("the model has no message %s", message)
		}
		for name, other := range fields {
			if descriptor.Fields().ByName(protoreflect.Name(name)) != nil {
				t.Errorf("%s.%s is a field of the model", message, name)
			}
			if other.field != "" && descriptor.Fields().ByName(other.field) == nil {
				t.Errorf("%s.%s stands for %s, which the model does not have", message, name, other.field)
			}
			if other.remedy == "" {
				t.Errorf("%s.%s has no remedy", message, name)
			}
		}
	}
}
