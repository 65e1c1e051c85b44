package rollout

import (
	"errors"
	"fmt"
	"io/fs"

	"gatepost/definitions"
)

// First reads the definitions to start with: the file or, if that cannot be used, its last good definitions. wrong is
// why they are not those of the file. So a mistake in the file loses nothing that was served before a restart.
func First(path string, lastGood definitions.LastGood) (first *definitions.Definitions, wrong error, err error) {
	read, wrong := definitions.Load(path)
	if wrong == nil {
		return read, nil, nil
	}
	kept, keptErr := lastGood.Load()
	if keptErr == nil && kept.Name == path {
		return kept, wrong, nil
	}
	if keptErr != nil && !errors.Is(keptErr, fs.ErrNotExist) {
		wrong = errors.Join(wrong, keptErr)
	}
	return nil, nil, fmt.Errorf("there are no definitions to start with:\n%w", wrong)
}
