// The fields of an operation of ockham.kernels.ops, by name, as whoever holds the Python object gives
// them. Each throws where a field is missing or of another type.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/parts.h"
#include "state/rope.h"

namespace ockham::ops {

class Fields {
   public:
    virtual ~Fields() = default;
    virtual bool none(const char* field) const = 0;
    virtual bool flag(const char* field) const = 0;
    virtual int64_t integer(const char* field) const = 0;
    virtual float number(const char* field) const = 0;
    virtual std::string text(const char* field) const = 0;
    virtual std::vector<float> floats(const char* field) const = 0;  // empty for None
    // The fields of a record that the operation holds.
    virtual std::unique_ptr<Fields> record(const char* field) const = 0;

    // A matrix all of whose rows stand in one format; a PackedMatrix of no outputs for None.
    virtual PackedMatrix matrix(const char* field) const = 0;
    virtual std::vector<PackedMatrix> matrices(const char* field) const = 0;
    // A matrix whose rows may stand in several formats.
    virtual Stack stack(const char* field) const = 0;

    float optional_number(const char* field) const { return none(field) ? 0.0f : number(field); }
    Stack optional_matrix(const char* field) const {
        return none(field) ? Stack() : Stack(matrix(field));
    }
    // A matrix of a layer that an adapter may add to.
    Stack dense(const char* field, bool several_formats) const {
        Stack result = several_formats ? stack(field) : Stack(matrix(field));
        result.role = "layer." + std::to_string(integer("layer")) + "." + field;
        return result;
    }
    Norm norm(const char* field) const {
        if (none(field)) return {};
        const std::unique_ptr<Fields> fields = record(field);
        Norm result;
        result.weight = fields->floats("weight");
        result.eps = fields->number("eps");
        if (!result) throw std::invalid_argument("a norm has no weights.");
        const std::string kind = fields->text("kind");
        if (kind != "rms" && kind != "layer")
            throw std::invalid_argument("the cpu backend does not know the norm " + kind + ".");
        result.centred = kind == "layer";
        result.bias = fields->floats("bias");
        if (!fields->none("then")) result.then.push_back(fields->norm("then"));
        return result;
    }
    Rope rope(const char* field) const {
        if (none(field)) return {};
        const std::unique_ptr<Fields> fields = record(field);
        Rope result{fields->floats("inverse_frequencies"), fields->number("scale")};
        result.growth = fields->number("growth");
        result.period = fields->integer("period");
        if (fields->none("dual_chunk")) return result;
        const std::unique_ptr<Fields> chunks = fields->record("dual_chunk");
        result.chunk = chunks->integer("chunk");
        result.reach = chunks->integer("reach");
        result.original = chunks->integer("original");
        return result;
    }
    Activation activation(const char* field) const {
        const std::string name = text(field);
        if (name == "silu") return Activation::silu;
        if (name == "gelu_tanh") return Activation::gelu_tanh;
        if (name == "gelu") return Activation::gelu;
        if (name == "relu") return Activation::relu;
        if (name == "clamped_swiglu") return Activation::clamped_swiglu;
        if (name == "relu_squared") return Activation::relu_squared;
        throw std::invalid_argument("the cpu backend does not know the activation " + name + ".");
    }
};

}  // namespace ockham::ops
