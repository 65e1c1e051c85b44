package definitions

import _ "embed"

// Schema is the JSON Schema (draft 2020-12) of a definitions file, for editors. It is made from the model and its
// rules, and is wider than [Parse]: it does not see what is wrong with values by what they mean.
//
//go:embed gatepost.schema.json
var Schema []byte
