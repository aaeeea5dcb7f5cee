package main

import (
	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/config"
)

func newSchemaCommand(a *app) *cobra.Command {
	var mappings bool
	cmd := &cobra.Command{
		Use:     "schema",
		Short:   "Print the configuration's JSON Schema, for editors",
		GroupID: groupMapping,
		Long: `schema prints the JSON Schema (draft 2020-12) of the configuration, with which an editor completes keys, explains them and marks
mistakes. Editors with the YAML language server find it by a comment in the first line of the file:

  # yaml-language-server: $schema=cdcsync.schema.json`,
		Example: `  cdcsync schema > cdcsync.schema.json
  cdcsync schema --mappings > mappings/cdcsync.schema.json   # for files that include names`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			document := config.Schema()
			if mappings {
				document = config.MappingsSchema()
			}
			_, err := a.stdout.Write(document)
			return err
		},
	}
	cmd.Flags().BoolVar(&mappings, "mappings", false, "the schema of an included file")
	return cmd
}
