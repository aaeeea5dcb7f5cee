package sinks

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/shape"
)

// The codes of numberType.
const (
	numberCPF   = "1"
	numberPhone = "3"
	numberEmail = "4"
)

// fanbaseBatchShape is an element of data[], as the vendor's page "ID Batch V2" describes it.
func fanbaseBatchShape() shape.Item {
	people := &shape.Tagged{List: "numbers", Tag: "numberType", Value: "number", Tags: []string{numberCPF, numberEmail}}
	return shape.Item{Times: shape.TimesISO, People: people, Root: &shape.Node{
		Kind: shape.Object, Exclusive: []string{"pwd", "pwdhash"}, Fields: []shape.Field{
			{Name: "data", Required: true, Doc: "Personal data.", Node: fanShape()},
			{Name: "numbers", Required: true, Doc: "Documents, phones and e-mails; at least a CPF or an e-mail.", Node: numbersShape()},
			{Name: "sysValues", Doc: "Values of the source system, such as a card's number.", Node: pairsShape()},
			{Name: "addresses", Doc: "The address: one object, in spite of its name.", Node: addressShape()},
			{Name: "transactions", Doc: "Purchases.", Node: list(transactionShape())},
			{Name: "memberships", Doc: "Membership plans.", Node: list(membershipShape())},
			{Name: "optins", Doc: "Consents.", Node: list(optinShape())},
			{Name: "attributes", Doc: "Attributes of the fan, which Fanbase must have configured.", Node: pairsShape()},
			{Name: "pwd", Doc: "Password in plain text: creates a login account.", Node: notBlank()},
			{Name: "pwdhash", Doc: "Password as a hash: creates a login account.", Node: notBlank()},
		},
	}}
}

func fanShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Check: checkBirthday, Fields: []shape.Field{
		{Name: "identity", Required: true, Doc: "Always 0.", Node: codes("0")},
		{Name: "name1", Required: true, Doc: "Full name.", Node: notBlank()},
		{Name: "gender", Doc: "M, F, O or null.", Node: gender()},
		{Name: "socialName", Doc: "Nickname.", Node: words()},
		{Name: "birthday", Required: true, Doc: "Day of birth.", Node: between(1, 31)},
		{Name: "birthMonth", Required: true, Doc: "Month of birth.", Node: between(1, 12)},
		{Name: "birthYear", Required: true, Doc: "Year of birth.", Node: between(1000, 9999)},
		{Name: "nationalityIso3", Doc: "Nationality, ISO 3166-1 alpha-3.", Node: iso3()},
	}}
}

func numbersShape() *shape.Node {
	return &shape.Node{Kind: shape.Array, MinItems: 1, Check: checkNumbers, Elem: &shape.Node{
		Kind: shape.Object, Check: checkNumber, Fields: []shape.Field{
			{Name: "numberType", Required: true, Doc: "1 CPF, 3 phone, 4 e-mail.", Node: codes(numberCPF, numberPhone, numberEmail)},
			{Name: "number", Required: true, Doc: "Without formatting.", Node: notBlank()},
			{Name: "verified", Doc: "0 or 1.", Node: codes("0", "1")},
		},
	}}
}

func addressShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "addressType", Required: true, Doc: "1 main, 2 alternative.", Node: codes("1", "2")},
		{Name: "add1", Required: true, Doc: "Street.", Node: words()},
		{Name: "add2", Doc: "Complement.", Node: words()},
		{Name: "number", Doc: "House number: a number, so that 12A does not fit.", Node: number()},
		{Name: "add3", Required: true, Doc: "District.", Node: words()},
		{Name: "zip", Required: true, Doc: "Postal code.", Node: words()},
		{Name: "city", Required: true, Doc: "City.", Node: words()},
		{Name: "state", Required: true, Doc: "State in two letters.", Node: &shape.Node{Kind: shape.String, MaxLength: 2, Check: checkState}},
		{Name: "iso3", Required: true, Doc: "Country, ISO 3166-1 alpha-3.", Node: iso3()},
	}}
}

func transactionShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "date", Required: true, Doc: "When.", Node: dateTime()},
		{Name: "type", Required: true, Doc: "Type of the transaction.", Node: number()},
		{Name: "productType", Required: true, Doc: "Type of the product.", Node: number()},
		{Name: "productDesc", Required: true, Doc: "Description of the product.", Node: words()},
		{Name: "productExternalCode", Required: true, Doc: "The product's code in this system.", Node: words()},
		{Name: "qty", Required: true, Doc: "Quantity.", Node: number()},
		{Name: "value", Required: true, Doc: "Value of one.", Node: number()},
		{Name: "channel", Required: true, Doc: "Sales channel.", Node: words()},
		{Name: "externalCode", Required: true, Doc: "The transaction's code in this system.", Node: words()},
		{Name: "deliveryMode", Doc: "Mode of delivery.", Node: words()},
		{Name: "priceType", Doc: "Type of the price.", Node: words()},
		{Name: "cupon", Doc: "Discount code.", Node: words()},
		{Name: "paymentMode", Required: true, Doc: "Mode of payment.", Node: words()},
		{Name: "complement", Doc: "The item within the order.", Node: words()},
		{Name: "discount", Doc: "Reason of the discount.", Node: words()},
		{Name: "discountValue", Doc: "Value of the discount.", Node: number()},
	}}
}

func membershipShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "externalId", Required: true, Doc: "The contract's code in this system.", Node: notBlank()},
		{Name: "status", Required: true, Doc: "Ativo, Inativo, Inadimplente and so on.", Node: notBlank()},
		{Name: "data", Required: true, Doc: "When the contract was made.", Node: dateTime()},
		{Name: "cancelamento", Doc: "When it was cancelled.", Node: dateTime()},
		{Name: "codigoCliente", Required: true, Doc: "The customer's CPF or e-mail.", Node: notBlank()},
		{Name: "plano", Required: true, Doc: "Name of the plan.", Node: notBlank()},
		{Name: "planoCode", Doc: "The plan's code in this system.", Node: words()},
		{Name: "complemento", Doc: "Further information.", Node: words()},
		{Name: "parcelas", Doc: "Instalments paid.", Node: number()},
		{Name: "validade", Doc: "Until when it is valid.", Node: dateTime()},
		{Name: "origem", Doc: "Sales channel.", Node: words()},
		{Name: "ativacao", Doc: "From when it is valid.", Node: dateTime()},
		{Name: "tipoVigencia", Doc: "Anual or Mensal.", Node: words()},
		{Name: "formaPagamento", Doc: "Mode of payment.", Node: words()},
		{Name: "guests", Doc: "Dependants and guests.", Node: list(guestShape())},
		{Name: "attributes", Doc: "Attributes of the membership.", Node: list(attributeShape())},
	}}
}

func guestShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Check: checkBirthday, Fields: []shape.Field{
		{Name: "guestFanbaseId", Doc: "The guest's id in Fanbase.", Node: number()},
		{Name: "externalId", Doc: "The guest's code in this system.", Node: words()},
		{Name: "cpf", Doc: "CPF, 11 digits.", Node: &shape.Node{Kind: shape.String, Check: checkCPF}},
		{Name: "email", Doc: "E-mail.", Node: words()},
		{Name: "celular", Doc: "Mobile phone, digits.", Node: &shape.Node{Kind: shape.String, Check: checkPhone}},
		{Name: "name1", Doc: "Full name.", Node: words()},
		{Name: "gender", Doc: "M, F, O or null.", Node: gender()},
		{Name: "socialName", Doc: "Nickname.", Node: words()},
		{Name: "birthday", Doc: "Day of birth.", Node: between(1, 31)},
		{Name: "birthMonth", Doc: "Month of birth.", Node: between(1, 12)},
		{Name: "birthYear", Doc: "Year of birth.", Node: between(1000, 9999)},
	}}
}

func attributeShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "type", Required: true, Doc: "Type, such as Card.", Node: words()},
		{Name: "name", Doc: "Name.", Node: words()},
		{Name: "value", Required: true, Doc: "Value.", Node: words()},
		{Name: "note", Doc: "Note.", Node: words()},
		{Name: "externalCode", Doc: "The attribute's code in this system.", Node: words()},
	}}
}

func optinShape() *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "optinCode", Required: true, Doc: "Code of the consent.", Node: notBlank()},
		{Name: "optinDesc", Required: true, Doc: "Description of the consent.", Node: words()},
		{Name: "optinDate", Required: true, Doc: "When it was given.", Node: dateTime()},
		{Name: "optinCancelDate", Doc: "When it was withdrawn.", Node: dateTime()},
	}}
}

func pairsShape() *shape.Node {
	return list(&shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "key", Required: true, Doc: "Key.", Node: notBlank()},
		{Name: "value", Required: true, Doc: "Value.", Node: words()},
	}})
}

func list(elem *shape.Node) *shape.Node { return &shape.Node{Kind: shape.Array, Elem: elem} }

func words() *shape.Node { return &shape.Node{Kind: shape.String} }

func notBlank() *shape.Node { return &shape.Node{Kind: shape.String, Format: shape.FormatNoBlank} }

func dateTime() *shape.Node { return &shape.Node{Kind: shape.String, Format: shape.FormatDateTime} }

func number() *shape.Node { return &shape.Node{Kind: shape.Number} }

func codes(allowed ...string) *shape.Node { return &shape.Node{Kind: shape.Integer, Enum: allowed} }

func between(least, most float64) *shape.Node {
	return &shape.Node{Kind: shape.Integer, Min: &least, Max: &most}
}

func gender() *shape.Node {
	return &shape.Node{Kind: shape.String, Nullable: true, Enum: []string{`"M"`, `"F"`, `"O"`}}
}

func iso3() *shape.Node { return &shape.Node{Kind: shape.String, MaxLength: 3, Check: checkISO3} }

func checkISO3(value []byte) error {
	if len(value) != len(`"BRA"`) || strings.Trim(string(value), `"ABCDEFGHIJKLMNOPQRSTUVWXYZ`) != "" {
		return errors.New("must be a country in three capitals, such as BRA")
	}
	return nil
}

func checkState(value []byte) error {
	if len(value) != len(`"SP"`) || strings.Trim(string(value[1:3]), "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return errors.New("must be a state in two capitals, such as SP")
	}
	return nil
}

// checkBirthday refuses a day that its month does not have. A guest may come with parts of a date.
func checkBirthday(object []byte) error {
	var born struct {
		Day   int `json:"birthday"`
		Month int `json:"birthMonth"`
		Year  int `json:"birthYear"`
	}
	_ = json.Unmarshal(object, &born) // of values that are no numbers, the fields' own shapes speak
	if born.Day == 0 || born.Month == 0 {
		return nil
	}
	if born.Year == 0 {
		born.Year = 2000 // a leap year: the 29 February exists
	}
	date := time.Date(born.Year, time.Month(born.Month), born.Day, 0, 0, 0, 0, time.UTC)
	if date.Day() != born.Day || int(date.Month()) != born.Month {
		return errors.New("has a birthday that its month does not have")
	}
	return nil
}

// checkNumbers asks for what identifies a fan.
func checkNumbers(array []byte) error {
	var numbers []struct {
		Type text `json:"numberType"`
	}
	_ = json.Unmarshal(array, &numbers) // of elements that are no objects, their own shape speaks
	for _, n := range numbers {
		if n.Type == numberCPF || n.Type == numberEmail {
			return nil
		}
	}
	return errors.New("must hold a CPF (numberType 1) or an e-mail (numberType 4)")
}

// checkCPF asks for eleven digits, without formatting.
func checkCPF(value []byte) error {
	if text := strings.Trim(string(value), `"`); len(text) != cpfDigits || digits(text) != cpfDigits {
		return errors.New("must be 11 digits as a CPF; use =digits(column)")
	}
	return nil
}

func checkPhone(value []byte) error {
	if !isPhone(strings.Trim(string(value), `"`)) {
		return errors.New("must be digits as a phone; use =digits(column)")
	}
	return nil
}

// isPhone allows a plus in front of the digits, as some of the vendor's pages show it.
func isPhone(s string) bool {
	s = strings.TrimPrefix(s, "+")
	return s != "" && digits(s) == len(s)
}

const cpfDigits = 11

func checkNumber(object []byte) error {
	var n struct {
		Type   text   `json:"numberType"`
		Number string `json:"number"`
	}
	_ = json.Unmarshal(object, &n) // of values of other types, the fields' own shapes speak
	local, domain, at := strings.Cut(n.Number, "@")
	switch {
	case n.Type == numberCPF && (len(n.Number) != cpfDigits || digits(n.Number) != cpfDigits):
		return errors.New("must be 11 digits as a CPF; use =digits(column)")
	case n.Type == numberPhone && !isPhone(n.Number):
		return errors.New("must be digits as a phone; use =digits(column)")
	case n.Type == numberEmail && (!at || local == "" || domain == "" || strings.ContainsAny(n.Number, " \t\r\n")):
		return errors.New("is no e-mail")
	}
	return nil
}
